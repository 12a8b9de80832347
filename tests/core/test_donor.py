"""A run starts from weights: whole and said, or refused; a resumed run no longer needs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import SMALL, Dira, kit
from networks import lively, recipe, weights
from parts import outcome
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model

from dira_core import donor
from dira_core.build import build_trio
from dira_core.errors import CheckpointError, RecipeError
from dira_core.export import load
from dira_core.trio import Trio


@pytest.fixture(scope="module", autouse=True)
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")):
        yield


def same(a: nn.Module | None, b: nn.Module | None) -> bool:
    assert a is not None
    assert b is not None
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def built(init: Path | str, **changes: Any) -> Trio:
    return build_trio(recipe(init=str(init), **changes))


def line(trio: Trio) -> str:
    assert trio.donor is not None
    return trio.donor.line()


def test_backbone_and_restorer_start_from_another_run(tmp_path: Path) -> None:
    before = weights(tmp_path / "run", recipe())
    for path in (tmp_path / "run", tmp_path / "run/weights"):
        trio = built(path)
        assert same(trio.backbone, before.backbone)
        assert same(trio.restorer, before.restorer)
        assert trio.backbone.training
        assert line(trio) == (
            f"init {path}: 120 of 120 backbone tensors matched; 62 of 62 restorer tensors matched"
        )
    fresh = build_trio(recipe())
    assert fresh.donor is None
    assert not same(fresh.backbone, before.backbone)


def test_an_encoder_alone_leaves_the_restorer_as_the_seed_drew_it(tmp_path: Path) -> None:
    before, fresh = weights(tmp_path / "run", recipe()), build_trio(recipe())
    trio = built(tmp_path / "run/weights/backbone.safetensors")
    assert same(trio.backbone, before.backbone)
    assert same(trio.restorer, fresh.restorer)
    assert line(trio).endswith("tensors matched; restorer starts afresh, no weights for it")


def test_a_restorer_of_other_widths_starts_afresh_and_says_so(tmp_path: Path) -> None:
    weights(tmp_path / "run", recipe())
    trio, fresh = built(tmp_path / "run", restorer="unet"), build_trio(recipe(restorer="unet"))
    assert same(trio.restorer, fresh.restorer)
    assert "restorer starts afresh, it does not fit (" in line(trio)


def test_a_teacher_is_a_copy_of_the_weights_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(tmp_path / "run", recipe())
    seen = []
    plain = donor.Donor.give_backbone

    def give(self: donor.Donor, backbone: Any) -> None:
        plain(self, backbone)
        seen.append("given")

    from dira_core import build

    def make(kind: str, *parts: Any, **wanted: Any) -> Any:
        seen.append(kind)
        if kind == "discriminator":
            assert same(parts[1], before.backbone)
        return made(kind, *parts, **wanted)

    made = build.make
    monkeypatch.setattr(donor.Donor, "give_backbone", give)
    monkeypatch.setattr(build, "make", make)
    built(tmp_path / "run", discriminator={"name": "simsiam", "dim": 8, "hidden": 4})
    assert seen == ["backbone", "given", "discriminator", "restorer"]


def test_another_architecture_is_refused_with_the_way_out(tmp_path: Path) -> None:
    weights(tmp_path / "run", recipe())
    with pytest.raises(
        RecipeError,
        match="holds resnet18, which does not fit backbone 'resnet34'.*: use --backbone resnet18",
    ):
        built(tmp_path / "run", backbone="resnet34")
    torch.save({"encoder.a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(RecipeError, match="holds another network, .*: use other weights"):
        built(tmp_path / "a.pth")


@pytest.mark.parametrize("init", ["", "gone", "/dev/null"])
def test_an_init_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        built(init)


def published(folder: Path, monkeypatch: pytest.MonkeyPatch, *, name: str = "") -> nn.Module:
    """Publish a ResNet-18 under its digest, where torchvision's is looked for."""
    torch.manual_seed(0)
    net = lively(get_model("resnet18", weights=None))
    torch.save(net.state_dict(), folder / "net.pth")
    digest = name or hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()[:8]
    path = (folder / "net.pth").rename(folder / f"resnet18-{digest}.pth")
    monkeypatch.setattr(donor, "imagenet_url", lambda network: path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(folder / "hub"))
    return net


@torch.no_grad()
def test_imagenet_weights_see_images_as_they_did_in_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = published(tmp_path, monkeypatch)
    trio = built("imagenet")
    assert line(trio).startswith(
        "init imagenet: 119 of 120 backbone tensors matched, 1 adapted (conv1.weight 3 -> 1 "
        "channels); restorer starts afresh"
    )
    grey = torch.rand(1, 1, 64, 64)
    normalised = (grey - torch.tensor(donor.MEAN).view(3, 1, 1)) / torch.tensor(
        donor.DEVIATION
    ).view(3, 1, 1)
    inner = (..., slice(2, -2), slice(2, -2))  # the border is padded with another colour
    wanted = net.bn1(net.conv1(normalised))[inner]
    backbone: Any = trio.backbone.eval()
    found = backbone.bn1(backbone.conv1(grey))[inner]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_imagenet_weights_are_kept_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path, monkeypatch)
    built("imagenet")
    (source,) = tmp_path.glob("resnet18-*.pth")
    source.unlink()
    built("imagenet")
    (kept,) = tmp_path.glob("hub/**/*.pth")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is not what torchvision published"):
        built("imagenet")
    kept.unlink()
    with pytest.raises(CheckpointError, match=rf"put the file at .*{source.name}") as caught:
        built("imagenet")
    assert "\n" not in str(caught.value)


def test_a_download_of_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path, monkeypatch, name="00000000")
    with pytest.raises(CheckpointError, match="invalid hash value"):
        built("imagenet")
    assert not list(tmp_path.glob("hub/**/*.pth"))


def test_imagenet_is_known_for_torchvisions_resnets_alone() -> None:
    assert donor.imagenet_url("resnet18").endswith("/resnet18-f37072fd.pth")
    for name in ("small-net", "resnet19", "vgg11"):
        with pytest.raises(RecipeError, match="torchvision's ResNets, got backbone"):
            donor.imagenet_url(name)


def test_a_run_says_what_it_started_from_and_keeps_the_names(dira: Dira) -> None:
    assert dira("run", *SMALL, "--name", "first")[0] == 0
    code, _, err = dira("run", *SMALL, "--name", "second", "--init", "runs/first", "--epochs", "1")
    assert code == 0, err
    said = [text for text in err.splitlines() if text.startswith("init ")]
    assert len(said) == 1
    assert said[0].startswith("init runs/first: 21 of 21 backbone tensors matched; ")
    record = json.loads(Path("runs/second/init.json").read_text())
    assert record["init"] == "runs/first"
    assert len(record["backbone"]["matched"]) == 21
    assert record["sha256"].keys() == {"backbone.safetensors", "restorer.safetensors"}
    assert load("runs/second").header.origin == "first"
    assert not Path("runs/first/init.json").exists()


def test_a_resumed_run_needs_its_initial_weights_no_longer(
    dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dira("run", *SMALL, "--name", "first", "--seed", "7", "--epochs", "1")[0] == 0
    flags = [*SMALL, "--init", "runs/first"]
    assert dira("run", *flags, "--name", "whole")[0] == 0
    monkeypatch.setenv("KIT_STOP_AT", "5")
    assert dira("run", *flags, "--name", "stopped")[0] == 75
    monkeypatch.delenv("KIT_STOP_AT")
    Path("runs/first").rename("runs/gone")
    code, _, err = dira("run", "--resume", "runs/stopped")
    assert code == 0, err
    assert "init" not in err
    assert outcome(Path("runs/stopped")) == outcome(Path("runs/whole"))
    assert json.loads(Path("runs/stopped/init.json").read_text())["init"] == "runs/first"
    code, _, err = dira("run", "--resume", "runs/stopped", "--init", "runs/gone")
    assert (code, "init cannot change" in err) == (2, True)


def test_a_run_stopped_before_its_first_checkpoint_still_starts_from_them(
    dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dira("run", *SMALL, "--name", "first", "--seed", "7", "--epochs", "1")[0] == 0
    flags = [*SMALL, "--init", "runs/first"]
    assert dira("run", *flags, "--name", "whole")[0] == 0
    monkeypatch.setenv("KIT_FAIL_AT", "start")
    assert dira("run", *flags, "--name", "failed")[0] == 4
    monkeypatch.delenv("KIT_FAIL_AT")
    for path in Path("runs/failed/checkpoints").iterdir():
        path.rename(f"gone-{path.name}")
    code, _, err = dira("run", "--resume", "runs/failed")
    assert code == 0, err
    assert "init runs/first: 21 of 21" in err
    assert outcome(Path("runs/failed")) == outcome(Path("runs/whole"))


def test_a_rehearsal_finds_what_does_not_fit(dira: Dira) -> None:
    code, _, err = dira("run", *SMALL, "--dry-run", "--init", "nowhere")
    assert (code, err.count("\n")) == (3, 1)
    assert "no weights can be read from nowhere" in err


def test_exported_and_imported_weights_go_round_the_command_line(dira: Dira) -> None:
    flags = ["--preset", "none", "--data", "small-set", "--backbone", "resnet18", "--disc", "none"]
    flags += ["--res", "unet", "--size", "16", "--epochs", "1", "--batch-size", "8"]
    flags += ["--precision", "fp32"]
    assert dira("run", *flags, "--name", "first")[0] == 0
    code, out, err = dira("export", "runs/first", "--to", "torchvision", "--channels", "3")
    assert code == 0, err
    path = "runs/first/exports/torchvision-3ch.safetensors"
    assert out.splitlines()[0] == f"wrote     {path}"
    assert "checked   same images through dira and torchvision differ by " in out
    assert "note      the classifier fc is not part of the weights" in out
    code, out, err = dira("import", path, "--out", "back", "--channels", "1")
    assert code == 0, err
    assert "backbone   119 of 120 resnet18 tensors matched, 1 adapted" in out
    assert "continue with: dira run --init back" in out
    assert same(load("back").backbone, load("runs/first").backbone)
    code, _, err = dira("run", *flags, "--init", "back", "--name", "second")
    assert code == 0, err
    assert "init back: 120 of 120 backbone tensors matched; restorer starts afresh" in err
    code, _, err = dira("export", "back", "--to", "nothing")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = dira("import", "runs/first/recipe.toml", "--out", "other")
    assert (code, err.count("\n")) == (3, 1)


def test_the_first_stage_starts_from_them_and_the_next_from_the_first(dira: Dira) -> None:
    assert dira("run", *SMALL, "--name", "first", "--seed", "7", "--epochs", "1")[0] == 0
    stages = '[{name = "one"}, {name = "two"}]'
    flags = [*SMALL, "--epochs", "1", "--init", "runs/first", "--set", f"stages={stages}"]
    flags += ["--set", "checkpoint.keep=9"]
    code, _, err = dira("run", *flags, "--name", "staged")
    assert code == 0, err
    one = Path("runs/staged/stages/one")
    said = [text.split(":")[0] for text in err.splitlines() if text.startswith("init ")]
    assert said == ["init runs/first", f"init {one}"]
    started = load_file(one / "checkpoints/step-00000000/model.safetensors")
    given = load("runs/first").backbone.state_dict()
    assert all(torch.equal(started[f"model.backbone.{key}"], given[key]) for key in given)
