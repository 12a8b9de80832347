"""Weights that travel come back as the network that was trained, fed as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import Dira
from parts import small_run
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file

from dira_core.build import build_source, build_trio
from dira_core.data.cutting import whole_images
from dira_core.errors import CheckpointError, DataError
from dira_core.export import Preprocessing, load, write_weights
from dira_core.game import Game
from dira_core.recipe import Recipe
from dira_core.trio import Trio


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of several sizes, 8 and 16 bit, grey and colour."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(40, 50), (64, 33), (48, 48, 3)]):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        PillowImage.fromarray(pixels).save(folder / f"{number}.png")
    deep = rng.integers(0, 4000, (50, 40), dtype=np.uint16)
    PillowImage.fromarray(deep).save(folder / "deep.png")
    return folder


def recipe(pictures: Path, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"name": "folder", "path": str(pictures), **data},
            "backbone": "resnet18",
            "restorer": {"name": "unet", "widths": [8, 8, 8, 8, 8]},
            "views": {"size": 32},
        }
    )


def trained(chosen: Recipe) -> Trio:
    """Return a trio whose batch statistics have seen something."""
    trio = build_trio(chosen)
    trio.backbone(torch.rand(8, 1, 32, 32))
    trio.backbone.eval()
    return trio


@pytest.fixture
def weights(tmp_path: Path, pictures: Path) -> Path:
    chosen = recipe(pictures)
    write_weights(tmp_path / "weights", trained(chosen), chosen)
    return tmp_path / "weights"


def test_loaded_weights_give_the_features_and_restorations_of_the_trained_parts(
    tmp_path: Path, pictures: Path
) -> None:
    chosen = recipe(pictures)
    trio = trained(chosen)
    write_weights(tmp_path / "weights", trio, chosen)
    images = torch.rand(2, 1, 32, 32)
    wanted = trio.backbone(images)
    assert trio.restorer is not None
    restored = trio.restorer.eval()(wanted)
    for path in (tmp_path, tmp_path / "weights", str(tmp_path)):
        found = load(path)
        assert not found.backbone.training
        pairs = zip(found.backbone(images), wanted, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert found.restorer is not None
        assert torch.equal(found.restorer(wanted), restored)


def test_weights_of_a_cache_prepare_a_file_as_those_of_the_files_it_was_made_of(
    tmp_path: Path, pictures: Path, dira: Dira
) -> None:
    window = ("--set", "data.window=[20,90]")
    assert dira("data", "cache", str(pictures), "--out", "cache", *window)[0] == 0
    values = recipe(pictures, window=[20, 90]).model_dump(mode="json")
    values["train"] = {"batch_size": 4}
    cache = {"data": {"name": "cache", "path": str(tmp_path / "cache")}}
    for more, name in (({}, "a"), (cache, "b")):
        chosen = Recipe.model_validate(values | more)
        Game(build_trio(chosen), build_source(chosen), chosen).write_weights(tmp_path / name)
    assert load(tmp_path / "b").preprocess == load(tmp_path / "a").preprocess
    assert load(tmp_path / "b").preprocess.window == (20, 90)


def test_without_a_restorer_none_is_loaded(tmp_path: Path, pictures: Path) -> None:
    values = recipe(pictures).model_dump(mode="json")
    chosen = Recipe.model_validate(
        values | {"restorer": None, "discriminator": {"name": "simsiam", "dim": 8, "hidden": 4}}
    )
    write_weights(tmp_path / "weights", build_trio(chosen), chosen)
    assert load(tmp_path).restorer is None


@pytest.mark.parametrize("window", ["auto", "full", "percentile", [100, 900]])
def test_preprocessing_is_that_of_the_probe_for_the_same_file(
    tmp_path: Path, pictures: Path, window: Any
) -> None:
    chosen = recipe(pictures, window=window)
    write_weights(tmp_path / "weights", build_trio(chosen), chosen)
    preprocess, source = load(tmp_path).preprocess, build_source(chosen)
    assert len(source) == 4
    for index in range(4):
        wanted = whole_images(source, [index], 32, 1)
        assert torch.equal(preprocess(pictures / source.name(index)), wanted)


def test_pixels_are_fed_in_their_full_range() -> None:
    preprocess = Preprocessing(channels=1, size=8)
    full = [(255, np.uint8, 1.0), (65535, np.uint16, 1.0), (0.5, np.float32, 0.5)]
    for value, dtype, wanted in full:
        fed = preprocess(np.full((1, 20, 20), value, dtype))
        torch.testing.assert_close(fed, torch.full((1, 1, 8, 8), wanted))
    assert Preprocessing(channels=3, size=8)(np.zeros((1, 9, 9), np.uint8)).shape == (1, 3, 8, 8)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        Preprocessing(channels=1, size=8)(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["backbone", "restorer"])
@pytest.mark.parametrize("change", ["missing", "extra", "reshaped"])
def test_nothing_is_loaded_in_part(weights: Path, name: str, change: str) -> None:
    path = weights / f"{name}.safetensors"
    tensors, header = load_file(path), {"dira": header_of(path)}
    key = next(key for key in tensors if key.endswith("weight"))
    if change == "missing":
        del tensors[key]
    elif change == "extra":
        tensors["foreign.weight"] = torch.zeros(1)
    else:
        tensors[key] = torch.zeros(1, 2, 3)
    save_file(tensors, path, header)
    with pytest.raises(CheckpointError, match="does not fit the component it names"):
        load(weights)


def header_of(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return str(file.metadata()["dira"])


@pytest.mark.parametrize("name", ["backbone", "restorer"])
@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_damaged_file_is_one_plain_error(weights: Path, name: str, cut: int) -> None:
    path = weights / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is damaged"):
        load(weights)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "not written by this dira"),
        ({"dira": "{"}, "is damaged"),
        ({"dira": '{"format": 99}'}, "not written by this dira"),
    ],
)
def test_a_file_of_somebody_else_is_refused(
    weights: Path, header: dict[str, str] | None, said: str
) -> None:
    path = weights / "backbone.safetensors"
    save_file(load_file(path), path, header)
    with pytest.raises(CheckpointError, match=said):
        load(weights)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give the folder of a finished run"):
        load(tmp_path)


def test_weights_of_parts_put_together_by_hand_say_how_to_load_them(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", train={"epochs": 1}).folder
    with pytest.raises(CheckpointError, match="put together by hand.*load_state_dict"):
        load(folder)
    tensors = load_file(folder / "weights/backbone.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())


def test_options_this_version_does_not_know_are_refused(weights: Path) -> None:
    path = weights / "backbone.safetensors"
    about = header_of(path).replace("zero_init_residual", "of_another_version")
    save_file(load_file(path), path, {"dira": about})
    with pytest.raises(CheckpointError, match="of_another_version"):
        load(weights)
