"""`dira config` and the flags every command shares; a fake distribution brings the components."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from distributions import offered
from typer.testing import CliRunner

from dira_core import cli
from dira_core.cli.config import layers, recipe_flags
from dira_core.layering import Layer

PLUGIN = """
from dira_core import Component, Options, Preset, hookimpl

class Dis(Options):
    dim: int = 8

@hookimpl
def dira_discriminators():
    yield Component("alpha", Dis, print, summary="a")
    yield Component("beta", Dis, print, summary="b")

@hookimpl
def dira_restorers():
    yield Component("draw", Options, print, summary="r")

@hookimpl
def dira_adversaries():
    yield Component("judge", Options, print, summary="c")

@hookimpl
def dira_presets():
    trio = {"discriminator": "beta", "restorer": "draw", "backbone": "resnet18"}
    yield Preset("tiny", {**trio, "data": "phantom"}, "t")
    yield Preset("fixed", {**trio, "seed": 2}, "f")
"""


@pytest.fixture(autouse=True)
def _fake_plugin(tmp_path: Path) -> Iterator[None]:
    with offered(tmp_path, "kit", PLUGIN, only="kit"):
        yield


def config(*arguments: str) -> str:
    result = CliRunner().invoke(cli.command_line(), ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def printed(*arguments: str) -> dict[str, Any]:
    return tomllib.loads(config(*arguments))


@pytest.mark.parametrize(
    ("flag", "value", "key", "expected"),
    [
        ("--disc", "alpha", ("discriminator", "name"), "alpha"),
        ("--disc", "none", ("discriminator",), "none"),
        ("--res", "none", ("restorer",), "none"),
        ("--adv", "judge", ("adversary", "name"), "judge"),
        ("--backbone", "resnet50", ("backbone", "name"), "resnet50"),
        ("--data", "some.csv", ("data", "path"), "some.csv"),
        ("--size", "48", ("views", "size"), 48),
        ("--epochs", "3", ("train", "epochs"), 3),
        ("--batch-size", "4", ("train", "batch_size"), 4),
        ("--lr", "1e-3", ("optimizer", "lr"), 0.001),
        ("--seed", "7", ("seed",), 7),
        ("--precision", "fp16", ("train", "precision"), "fp16"),
        ("--workers", "2", ("loader", "workers"), 2),
        ("--strategy", "fsdp", ("train", "strategy"), "fsdp"),
        ("--compile", None, ("train", "compile"), True),
        ("--mode", "di", ("restorer",), "none"),
        ("--init", "some/run", ("init",), "some/run"),
        ("--no-distort", None, ("views", "distort"), []),
        ("--preset", "fixed", ("seed",), 2),
        ("--set", "discriminator.dim=3", ("discriminator", "dim"), 3),
    ],
)
def test_each_flag_sets_its_key(
    flag: str, value: str | None, key: tuple[str, ...], expected: object
) -> None:
    more = ["--data", "phantom"] if flag == "--preset" else []
    node: Any = printed(flag, *([] if value is None else [value]), *more)
    for part in key:
        node = node[part]
    assert node == expected


def test_every_flag_is_tested_above() -> None:
    marks = test_each_flag_sets_its_key.pytestmark  # type: ignore[attr-defined]
    tested = {row[0] for mark in marks for row in mark.args[1]} | {"--recipe"}
    flags = {f"--{name.replace('_', '-')}" for name in layers.__annotations__ if name != "return"}
    assert tested == flags - {"--assignments"} | {"--set"}


def test_a_flag_goes_over_an_assignment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("seed = 1\n[train]\nepochs = 1\nbatch_size = 1\n")
    arguments = ["--recipe", str(file), "--set", "train.epochs=2", "--set", "train.batch_size=2"]
    got = printed(*arguments, "--epochs", "3")
    assert (got["seed"], got["train"]["batch_size"], got["train"]["epochs"]) == (1, 2, 3)


def test_what_is_printed_is_a_recipe_that_prints_itself(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(config("--adv", "none", "--set", "optimizer.clip=0.5", "--disc", "alpha"))
    assert config("--recipe", str(file)) == file.read_text()


def test_why_names_the_origin_of_each_value_and_is_toml_too() -> None:
    out = config("--why", "--size", "48", "--set", "seed=3")
    assert "views.size = 48  # --size\n" in out
    assert "seed = 3  # --set seed\n" in out
    assert "backbone.name = \"resnet18\"  # preset 'tiny'\n" in out
    assert "health.every = 50  # default\n" in out
    assert tomllib.loads(out) == printed("--size", "48", "--set", "seed=3")


def test_json_says_the_same_as_toml() -> None:
    recipe = json.loads(config("--json"))
    assert recipe["adversary"] is None
    with_why = json.loads(config("--json", "--why"))
    assert with_why["recipe"] == recipe
    assert with_why["why"]["data.name"] == "preset 'tiny'"


def test_the_schema_is_json_and_lists_what_is_installed() -> None:
    schema = json.loads(config("--schema"))
    assert schema["$defs"]["discriminator"]["oneOf"][0] == {"enum": ["alpha", "beta"]}


def test_problems_of_flags_are_all_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--disc", "alfa", "--size", "1", "--set", "optimizer.momentum=2"]
    monkeypatch.setattr(sys, "argv", ["dira", "config", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the recipe has 3 problems:\n")
    for part in ("(--disc)", "did you mean 'alpha'", "(--size)", "(--set optimizer.momentum)"):
        assert part in err


def test_a_command_gets_the_shared_flags_and_its_own() -> None:
    seen: list[object] = []

    @recipe_flags
    def command(asked: list[Layer], rounds: Annotated[int, typer.Option("--rounds")] = 2) -> None:
        """Say so."""
        seen.extend([[layer.origin for layer in asked], rounds])

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--seed", "1", "--rounds", "5"], catch_exceptions=False)
    assert result.exit_code == 0
    assert seen == [["preset 'tiny'", "--seed"], 5]


def complete(monkeypatch: pytest.MonkeyPatch, line: str) -> str:
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    environment: Callable[..., Any] = CliRunner().invoke
    return str(environment(cli.command_line(), [], env={"_DIRA_COMPLETE": "complete_bash"}).stdout)


def test_names_of_components_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(monkeypatch, "dira config --disc al").split() == ["alpha"]
    assert complete(monkeypatch, "dira plugins show ph").split() == ["phantom", "phantom3d"]
