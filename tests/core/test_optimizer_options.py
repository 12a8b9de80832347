"""Options of an optimizer on their way through layers, files and the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributions import offered
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dira_core import cli
from dira_core.errors import RecipeError
from dira_core.layering import Layer, assignment
from dira_core.optimizer_options import Optimizer
from dira_core.plugins import installed
from dira_core.recipe import Recipe, recipe_schema, to_toml
from dira_core.resolving import Resolved, resolve

PLUGIN = """
from dira_core import Component, Options, Preset, hookimpl

def build(*parts): return parts

@hookimpl
def dira_discriminators():
    table = {128: 0.7, 256: 0.4, 2048: 0.2}
    yield Component("tabled", Options, build, "s", defaults={"optimizer": {"lr": table}})
    yield Component("plain", Options, build, "s", defaults={"optimizer": {"lr": 0.5}})
"""

TABLE = {128: 0.7, 256: 0.4, 2048: 0.2}
"""What the fake Discriminator `tabled` brings along."""


@pytest.fixture(autouse=True, scope="module")
def _fake_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with offered(tmp_path_factory.mktemp("site"), "rates", PLUGIN, only="rates"):
        assert [p for p in installed().problems if not p.warning] == []
        yield


def resolved(discriminator: str, *layers: dict[str, Any] | Layer) -> Resolved:
    base = {"data": "phantom", "backbone": "resnet18", "discriminator": discriminator}
    numbered = enumerate([base, *layers])
    return resolve([x if isinstance(x, Layer) else Layer(f"layer {n}", x) for n, x in numbered])


def lr(discriminator: str, *layers: dict[str, Any] | Layer) -> float | dict[int, float]:
    return resolved(discriminator, *layers).recipe.optimizer.lr


def lrs(value: object) -> dict[str, Any]:
    return {"optimizer": {"lr": value}}


# merging


def test_a_rate_replaces_a_table_and_a_table_a_rate() -> None:
    two = {"64": 0.1, "128": 0.2}
    assert lr("tabled") == TABLE
    assert lr("tabled", lrs(0.1)) == 0.1
    assert lr("plain", lrs(two)) == {64: 0.1, 128: 0.2}
    assert lr("tabled", lrs(0.1), lrs(two)) == {64: 0.1, 128: 0.2}
    assert lr("plain", lrs(two), lrs(0.3)) == 0.3


def test_a_table_replaces_a_table_whole() -> None:
    assert lr("tabled", lrs({"32": 0.1, "256": 0.2})) == {32: 0.1, 256: 0.2}


def test_a_single_entry_changes_that_entry_of_a_table() -> None:
    assert lr("tabled", assignment("optimizer.lr.256=0.5")) == TABLE | {256: 0.5}
    assert lr("tabled", assignment("optimizer.lr.64=0.9")) == TABLE | {64: 0.9}
    two = (assignment("optimizer.lr.64=0.9"), assignment("optimizer.lr.128=0.8"))
    assert lr("plain", *two) == {64: 0.9, 128: 0.8}


def test_tables_and_entries_know_their_origin() -> None:
    why = {k: o for k, _, o in resolved("tabled").explained() if k.startswith("optimizer.lr")}
    brought = "defaults of discriminator 'tabled'"
    assert why == {
        "optimizer.lr.128": brought,
        "optimizer.lr.256": brought,
        "optimizer.lr.2048": brought,
        "optimizer.lr_batch": "default",
    }
    changed = resolved("tabled", assignment("optimizer.lr.256=0.5"))
    why = {key: origin for key, _, origin in changed.explained()}
    assert why["optimizer.lr.256"] == "--set optimizer.lr.256"
    assert why["optimizer.lr.128"] == brought
    why = {key: origin for key, _, origin in resolved("tabled", lrs(0.1)).explained()}
    assert why["optimizer.lr"] == "layer 1"


# writing

TABLES = st.dictionaries(
    st.integers(1, 10**9), st.floats(1e-12, 1e6), min_size=2, max_size=6
) | st.floats(1e-12, 1e6)


@given(rate=TABLES, discriminator=st.sampled_from(["tabled", "plain"]))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_the_written_recipe_has_the_same_rates(
    rate: float | dict[int, float], discriminator: str
) -> None:
    first = resolved(discriminator, lrs(0.1), lrs(rate)).recipe
    assert first.optimizer.lr == rate
    again = resolve([Layer("recipe.toml", tomllib.loads(to_toml(first)))]).recipe
    assert again == first


def test_a_recipe_file_in_json_has_them_too(tmp_path: Path) -> None:
    first = resolved("tabled", lrs({"8": 0.5, "16": 0.25})).recipe
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(first.model_dump(mode="json")))
    assert tomllib.loads(config("--recipe", str(file))) == tomllib.loads(to_toml(first))


def config(*arguments: str) -> str:
    result = CliRunner().invoke(cli.command_line(), ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


TABLED = ("--disc", "tabled", "--data", "phantom", "--backbone", "resnet18")


def test_the_command_line_shows_replaces_and_writes_tables() -> None:
    text = {str(batch): rate for batch, rate in TABLE.items()}
    assert tomllib.loads(config(*TABLED))["optimizer"]["lr"] == text
    assert tomllib.loads(config(*TABLED, "--why"))["optimizer"]["lr"] == text
    assert tomllib.loads(config(*TABLED, "--lr", "0.1"))["optimizer"]["lr"] == 0.1
    assert tomllib.loads(config(*TABLED, "--set", "optimizer.lr=2"))["optimizer"]["lr"] == 2.0
    written = ("--set", "optimizer.lr={32=0.1, 64=0.2}")
    assert tomllib.loads(config(*TABLED, *written))["optimizer"]["lr"] == {"32": 0.1, "64": 0.2}


# validation


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (-1, "input should be greater than 0, got -1"),
        ({"128": 0.1}, "at least 2 items"),
        ({"128": 0.1, "0": 0.2}, "got '0'"),
        ({"128": 0.1, "many": 0.2}, "got 'many'"),
        ({"128": 0.1, "256": 0}, "input should be greater than 0, got 0"),
        ({"128": 0.1, "256": float("nan")}, "finite"),
        ([0.1, 0.2], "valid number"),
    ],
)
def test_a_rate_or_table_that_makes_no_sense_is_told_in_one_line(rate: object, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved("plain", lrs(rate))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("optimizer.lr: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "larz"),
        ("trust", 0),
        ("decay_1d", "maybe"),
        ("scale_1d", 0),
        ("schedule", "epoch"),
        ("floor", 1.5),
        ("betas", [1.0, 0.9]),
    ],
)
def test_options_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"optimizer.{key}"):
        resolved("plain", {"optimizer": {key: value}})


def test_both_players_have_the_same_options() -> None:
    recipe = resolved("tabled", {"critic_optimizer": {"lr": {"8": 1.0, "16": 2.0}}}).recipe
    assert recipe.critic_optimizer.lr == {8: 1.0, 16: 2.0}
    assert (recipe.optimizer.lr, recipe.critic_optimizer.name) == (TABLE, "sgd")


def test_the_schema_allows_a_rate_or_a_table_of_rates() -> None:
    assert Recipe.model_fields["optimizer"].annotation is Optimizer
    rate, table = recipe_schema()["$defs"]["Optimizer"]["properties"]["lr"]["oneOf"]
    assert rate == {"type": "number", "exclusiveMinimum": 0}
    assert (table["type"], table["additionalProperties"]) == ("object", rate)
