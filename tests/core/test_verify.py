"""A replay is bit-identical, or the first difference and its likely cause are named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import SMALL, kit
from typer.testing import CliRunner

from dira_core import cli
from dira_core.checkpoint import Checkpoints
from dira_core.errors import CheckpointError, DifferenceError, DiraError, RecipeError


@pytest.fixture(scope="module", autouse=True)
def kit_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kit")
    with kit(folder):
        yield folder


def dira(*words: str) -> str:
    """Return what the command printed; raise what it raised."""
    result = CliRunner().invoke(cli.command_line(), words)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, kit_folder: Path) -> Path:
    """Return a run of eight steps with checkpoints of steps 6 and 8."""
    out = tmp_path_factory.mktemp("runs")
    dira("run", *SMALL, "--out", str(out), "--name", "run")
    return out / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that may be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def rewritten(run: Path, step: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of a checkpoint, and its hashes with them."""
    checkpoints = Checkpoints(run / "checkpoints", 2)
    path = run / f"checkpoints/step-{step:08}"
    tensors, state = checkpoints.load(path)
    change(tensors)
    shutil.rmtree(path)
    checkpoints.save(step, tensors, state)


def refusal(kind: type[DiraError], run: Path, *flags: str) -> str:
    with pytest.raises(kind) as refused:
        dira("verify", str(run), *flags)
    return str(refused.value)


WEIGHT = "model.backbone.stages.0.0.weight"


def flipped(tensors: dict[str, Any]) -> None:
    """Flip the lowest bit of one weight."""
    bits = tensors["model"][WEIGHT].view(torch.int32).view(-1)
    bits[3] ^= 1


def test_a_run_is_replayed_to_the_bit_and_nothing_in_its_folder_changes(run: Path) -> None:
    def files() -> dict[Path, tuple[bytes, int]]:
        found = (path for path in run.rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    before = files()
    said = dira("verify", str(run))
    assert said.startswith("bit-identical: steps 7 to 8 replayed\n")
    tensors, _ = Checkpoints(run / "checkpoints", 2).load(run / "checkpoints/step-00000008")
    assert f"2 lines of metrics, {sum(map(len, tensors.values()))} tensors" in said
    assert files() == before


def test_fewer_steps_compare_metrics_alone(run: Path) -> None:
    said = dira("verify", str(run), "--steps", "1", "--checkpoint", "6")
    assert "steps 7 to 7 replayed" in said
    assert "1 lines of metrics, 0 tensors" in said


def test_without_a_checkpoint_after_it_the_lines_of_metrics_decide(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/step-00000008")
    assert "2 lines of metrics, 0 tensors" in dira("verify", str(run))


def test_a_bit_flipped_on_disk_is_found_by_the_hash_and_nothing_is_put_aside(run: Path) -> None:
    path = run / "checkpoints/step-00000008/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = refusal(CheckpointError, run)
    assert "model.safetensors is damaged" in found
    assert "choose another --checkpoint of 6, 8" in found
    assert path.read_bytes() == data


def test_a_bit_flipped_before_it_was_hashed_is_named_with_its_tensor_and_size(run: Path) -> None:
    rewritten(run, 8, flipped)
    said = refusal(DifferenceError, run)
    assert said.startswith(f"{WEIGHT} in the model of step 8 differs in 1 of ")
    assert "by at most " in said
    assert "likely cause: a file of the run or the content of an image was changed" in said


def test_a_flipped_bit_to_start_from_shows_in_the_first_step(run: Path) -> None:
    rewritten(run, 6, lambda tensors: tensors["model"][WEIGHT].mul_(1.5))
    assert " of step 7 is " in refusal(DifferenceError, run)


def test_a_changed_optimizer_is_named(run: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        next(iter(tensors["optimizer"].values())).add_(1)

    rewritten(run, 8, change)
    assert "in the optimizer of step 8 differs" in refusal(DifferenceError, run)


def test_a_changed_line_of_metrics_is_named(run: Path) -> None:
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["losses/total"] += 1e-6
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = refusal(DifferenceError, run)
    assert said.startswith("losses/total of step 8 is ")
    assert "1.0e-06 apart" in said


def test_another_number_of_threads_is_named_as_the_likely_cause(run: Path) -> None:
    rewritten(run, 8, flipped)
    torch.set_num_threads(2)
    try:
        said = refusal(DifferenceError, run)
    finally:
        torch.set_num_threads(1)
    assert "likely cause: the environment is another one (threads 1 -> 2)" in said


def test_changed_data_are_named(run: Path) -> None:
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("n = 16", "n = 20"))
    assert "the data changed since" in refusal(CheckpointError, run)


def test_what_cannot_be_replayed_is_refused_with_a_way_out(run: Path, tmp_path: Path) -> None:
    assert "no run" in refusal(RecipeError, tmp_path)
    assert "--checkpoint is one of 6, 8" in refusal(CheckpointError, run, "--checkpoint", "7")
    assert "nothing after step 8" in refusal(CheckpointError, run, "--checkpoint", "8")
    (run / "checkpoints").rename(run / "elsewhere")
    assert "no checkpoint to replay from" in refusal(CheckpointError, run)


def test_a_folder_that_is_no_checkpoint_is_passed_over(run: Path) -> None:
    (run / "checkpoints/step-00000006.bak").mkdir()
    assert "bit-identical" in dira("verify", str(run))


def test_what_is_no_run_is_said_before_processes_are_launched(tmp_path: Path) -> None:
    alone = refusal(DiraError, tmp_path / "none")
    assert refusal(DiraError, tmp_path / "none", "--nproc", "2") == alone


def test_a_run_with_stages_points_to_one_of_them(run: Path) -> None:
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("stages = []", 'stages = [{name = "only"}]'))
    assert f"verify {run}/stages/only" in refusal(RecipeError, run)


def test_other_bits_at_every_replay_are_blamed_on_what_is_not_deterministic(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dira_core import trainer

    monkeypatch.setattr(trainer, "seed_step", lambda *_: torch.seed())
    original = trainer.gradient_norm
    monkeypatch.setattr(trainer, "gradient_norm", lambda p: original(p) + torch.rand(()))
    assert "an operation that is not deterministic" in refusal(DifferenceError, run)


@pytest.mark.slow
def test_a_run_of_two_processes_is_replayed_by_two(tmp_path: Path, kit_folder: Path) -> None:
    def two(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dira_core", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
        out = ["--out", str(tmp_path), "--name", "run", "--batch-size", "2"]
        done = two("run", *SMALL, *out, "--nproc", "2")
        assert done.returncode == 0, done.stderr
        alone = two("verify", str(tmp_path / "run"))
        assert alone.returncode == 3
        assert "use --nproc 2" in alone.stderr
        done = two("verify", str(tmp_path / "run"), "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bit-identical: steps 7 to 8 replayed\n")
