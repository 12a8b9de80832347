"""Teams of processes take turns, and `dira bench scale` compares them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import SMALL, kit
from typer.testing import CliRunner

from dira_core import cli
from dira_core.bench.scale import arrangements, scale
from dira_core.bench.team import Team
from dira_core.cli.config import layers
from dira_core.errors import DiraError, RecipeError
from dira_core.recipe import to_toml
from dira_core.resolving import resolve


@pytest.fixture(scope="module", autouse=True)
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        yield


def test_cores_are_shared_out_as_threads() -> None:
    assert [*arrangements([1, 2, 4], 2)] == [
        ("1 x 2, alone", 1, "ddp"),
        ("2 x 1, ddp", 2, "ddp"),
        ("2 x 1, fsdp", 2, "fsdp"),
        ("4 x 1, ddp", 4, "ddp"),
        ("4 x 1, fsdp", 4, "fsdp"),
    ]


def test_a_batch_that_cannot_be_shared_is_refused_before_any_team_starts() -> None:
    recipe = resolve(layers(data="small-set", batch_size=4)).recipe
    with pytest.raises(RecipeError, match="4 images cannot be shared by 3 processes"):
        scale(recipe, 1, [2, 3], cores=2)


@pytest.mark.slow
def test_a_team_that_fails_is_no_hang(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(resolve(layers(data="small-set", batch_size=64)).recipe))
    with pytest.raises(DiraError, match="ended early"), Team("step", 2, 1, "ddp", recipe):
        pass


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_compares_strategies_exchanges_and_teachers() -> None:
    words = ["bench", "scale", *SMALL, "--rounds", "1", "--processes", "2", "--json"]
    result = CliRunner().invoke(cli.command_line(), words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    cores = len(os.sched_getaffinity(0))
    names = [name for name, _, _ in arrangements([1, 2], cores)]
    assert [*found["step"]] == [*found["images/s"]] == names
    assert [*found["speed against one process"]] == names[1:]
    assert [*found["teacher, 28 M parameters"]] == names
    assert found["times cheaper than the all-reduce"].keys() == {"gather"}
    for table in ("step", "exchange of 2, 128 x 8192"):
        for times in found[table].values():
            assert 0 < times["min"] <= times["median"] <= times["max"]
