"""From layers to one validated recipe and back to TOML; a fake distribution brings components."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributions import offered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dira_core import toml
from dira_core.errors import DiraError, PluginError, RecipeError
from dira_core.layering import Layer, assignment, default_preset, gather
from dira_core.plugins import installed
from dira_core.recipe import Recipe, recipe_schema, to_toml
from dira_core.resolving import Resolved, resolve

PLUGIN = """
from typing import Annotated
from pydantic import Field
from dira_core import Component, DistortionOptions, Options, Preset, hookimpl
from dira_core.components import Choice
from dira_core.plugins import Chosen

class Dis(Options):
    dim: int = Field(8, gt=0)
    note: str | None = None

class Rate(DistortionOptions):
    rate: float = 0.5

class Either(DistortionOptions):
    of: list[Annotated[Choice, Chosen("distortion")]]

def build(*parts): return parts

@hookimpl
def dira_discriminators():
    brings = {"optimizer": {"lr": 0.5, "clip": 1.0}, "views": {"distort": ["rate"]}}
    yield Component("alpha", Dis, build, summary="a", defaults=brings)
    yield Component("beta", Dis, build, summary="b")

@hookimpl
def dira_restorers():
    yield Component("draw", Options, build, summary="r", defaults={"optimizer": {"lr": 0.25}})

@hookimpl
def dira_adversaries():
    yield Component("judge", Options, build, summary="c", defaults={"weights": {"adv": 0.5}})

@hookimpl
def dira_distortions():
    yield Component("rate", Rate, build, summary="d", defaults={"seed": 77})
    yield Component("either", Either, build, summary="e")

@hookimpl
def dira_sources():
    def shaky(value): return 1 // ("shaky" not in value) < 1
    yield Component("twice", Options, build, summary="s", accepts=lambda v: v.endswith(".two"))
    yield Component("again", Options, build, summary="s", accepts=lambda v: v.endswith(".two"))
    yield Component("shaky", Options, build, summary="s", accepts=shaky)

@hookimpl
def dira_presets():
    trio = {"discriminator": "beta", "restorer": "draw", "backbone": "resnet18"}
    yield Preset("tiny", {**trio, "data": {"name": "phantom", "n": 9}, "seed": 1}, "t")
    yield Preset("fixed", {**trio, "seed": 2, "views": {"geometry": ["rate", "rate"]}}, "f")
"""


@pytest.fixture(autouse=True, scope="module")
def _fake_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with offered(tmp_path_factory.mktemp("site"), "kit", PLUGIN, only="kit,absent"):
        assert [p.plugin for p in installed().problems if not p.warning] == ["absent"]
        yield


BASE: dict[str, Any] = {"data": "phantom", "backbone": "resnet18", "discriminator": "beta"}


def resolved(*layers: dict[str, Any]) -> Resolved:
    return resolve([Layer(f"layer {n}", values) for n, values in enumerate([BASE, *layers])])


def recipe(*layers: dict[str, Any]) -> Recipe:
    return resolved(*layers).recipe


def problems(*layers: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolved(*layers)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in (lines[1:] if len(lines) > 1 else lines)]


# merging


def test_tables_merge_and_lists_replace() -> None:
    low = {"views": {"size": 64, "scale": [0.1, 1.0], "geometry": ["rate", "rate"]}}
    merged = recipe(low, {"views": {"size": 32, "geometry": ["rate"]}}).views
    assert (merged.size, merged.scale, len(merged.geometry)) == (32, (0.1, 1.0), 1)


def options(of: Recipe) -> Any:
    assert of.discriminator is not None
    return of.discriminator.options


def test_a_choice_of_the_same_name_keeps_the_options_below() -> None:
    low = {"discriminator": {"name": "beta", "dim": 3, "note": "x"}}
    for above in ("beta", {"name": "beta"}, {"note": "x"}):
        assert options(recipe(low, {"discriminator": above})).dim == 3


def test_a_choice_of_another_name_drops_the_options_below() -> None:
    low = {"discriminator": {"name": "beta", "dim": 3}}
    assert options(recipe(low, {"discriminator": "alpha"})).dim == 8


def test_another_optimizer_keeps_the_rate_below() -> None:
    low = {"optimizer": {"name": "sgd", "lr": 0.7}}
    assert recipe(low, {"optimizer": {"name": "adam"}}).optimizer.lr == 0.7


def test_none_leaves_a_role_out_however_it_is_said() -> None:
    low = {"restorer": "draw"}
    for none in ("none", None, {"name": "none"}):
        assert recipe(low, {"restorer": none}).restorer is None


def test_components_bring_defaults_below_every_layer() -> None:
    assert recipe({"discriminator": "alpha"}).optimizer.lr == 0.5
    assert recipe({"discriminator": "alpha", "optimizer": {"lr": 0.1}}).optimizer.lr == 0.1
    assert recipe({"discriminator": "alpha", "optimizer": {"clip": "none"}}).optimizer.clip is None


def test_only_the_components_finally_chosen_bring_defaults() -> None:
    assert recipe({"discriminator": "alpha"}, {"discriminator": "beta"}).optimizer.lr == 0.03


def test_the_discriminators_defaults_win_over_the_restorers() -> None:
    assert recipe({"discriminator": "beta", "restorer": "draw"}).optimizer.lr == 0.25
    assert recipe({"discriminator": "alpha", "restorer": "draw"}).optimizer.lr == 0.5


def test_components_that_were_brought_along_bring_their_own() -> None:
    assert recipe({"discriminator": "alpha"}).seed == 77
    assert recipe({"discriminator": "alpha"}, {"views": {"distort": []}}).seed == 0


def test_a_position_in_a_list_can_be_set() -> None:
    given = assignment("views.distort.1.rate=0.125").values
    [first, second] = recipe({"views": {"distort": ["rate", "rate"]}}, dict(given)).views.distort
    assert first.options.model_dump()["rate"] == 0.5
    assert second.options.model_dump()["rate"] == 0.125


def test_a_position_beyond_the_list_is_a_problem() -> None:
    given = dict(assignment("views.distort.4.rate=1").values)
    [line] = problems({"views": {"distort": ["rate"]}}, given)
    assert "views.distort: no entry 4, it has 1" in line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1e-3", 0.001),
        ("a=true", True),
        ("a=[1, 2]", [1, 2]),
        ("a={b = 1}", {"b": 1}),
        ('a="1"', "1"),
        ("a=phantom", "phantom"),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ("a=2020-01-01", "2020-01-01"),
        ("a=1\nb = 2", "1\nb = 2"),
        ("a=" + "9" * 5000, "9" * 5000),
    ],
)
def test_an_assignment_is_toml_where_it_can_be_and_text_elsewhere(text: str, value: Any) -> None:
    assert assignment(text).values == {"a": value}


@pytest.mark.parametrize("value", ["[inner-cutout]", '{"res": 1}', "[" * 9000])
def test_what_begins_like_a_list_or_a_table_and_is_none_is_no_text(value: str) -> None:
    with pytest.raises(RecipeError, match=r'is no TOML: write a list as \[1, "two"\], a table as'):
        assignment(f"a={value}")
    assert assignment(f"a='{value}'").values == {"a": value}


# problems


def test_every_problem_is_listed_at_once_with_key_rule_value_and_origin() -> None:
    lines = problems(
        {"views": {"sise": 3, "size": 2}, "seed": "x"},
        {"discriminator": {"name": "beta", "dim": 0, "dimm": 1}, "data": {"name": "phantm"}},
    )
    assert len(lines) == 6
    expected = {
        "views.sise: no such key": ("did you mean 'size'", "(layer 1)"),
        "views.size: input should be greater than or equal to 8": ("got 2", "(layer 1)"),
        "seed: input should be a valid integer": ("got 'x'", "(layer 1)"),
        "discriminator.dim: input should be greater than 0": ("got 0", "(layer 2)"),
        "discriminator.dimm: no such key (known: dim, note)": ("did you mean 'dim'", "(layer 2)"),
        "data: no source is called 'phantm'": ("did you mean 'phantom'", "(layer 2)"),
    }
    for start, parts in expected.items():
        [line] = [line for line in lines if line.startswith(start)]
        assert all(part in line for part in parts), line


def test_keys_within_distortions_within_distortions_are_known() -> None:
    inner = {"name": "either", "of": [{"name": "rate", "rat": 1}]}
    [line] = problems({"views": {"distort": [{"name": "either", "of": [inner]}]}})
    assert line.startswith("views.distort.0.of.0.of.0.rat: no such key (known: p, rate)")


def test_members_of_a_union_are_one_problem_of_one_key() -> None:
    layer = {"data": {"name": "folder", "path": "x", "window": "wide"}}
    [line] = problems(layer)
    assert line.startswith("data.window: ")
    assert " or " in line
    assert "union" not in line


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match=r"(?s)data: required.*backbone: required"):
        resolve([])


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        ({"discriminator": None}, "discriminator"),
        ({"weights": {"dis": 0}}, "discriminator"),
        ({"discriminator": None, "restorer": "draw", "weights": {"res": 0}}, "discriminator"),
        ({"adversary": "judge"}, "adversary"),
        ({"views": {"scale": [0.9, 0.2]}}, "views.scale"),
        ({"views": {"scale": [0.0, 1.0]}}, "views.scale"),
        ({"views": {"scale": [0.5, 1.5]}}, "views.scale"),
        ({"views": {"ratio": [2, 1]}}, "views.ratio"),
    ],
)
def test_what_does_not_fit_together_is_refused(layer: dict[str, Any], key: str) -> None:
    [line] = problems(layer)
    assert line.startswith(f"{key}: ")


@pytest.mark.parametrize(
    "roles", [{"restorer": "draw"}, {"restorer": "draw", "adversary": "judge"}]
)
@pytest.mark.parametrize("discriminator", ["beta", None])
def test_any_trio_with_something_to_train_is_accepted(roles: Any, discriminator: Any) -> None:
    assert recipe({"discriminator": discriminator, **roles}).restorer is not None


def test_choosing_of_a_broken_plugin_is_a_plugin_error() -> None:
    with pytest.raises(PluginError, match="absent"):
        resolved({"discriminator": "absent"})
    assert len(problems({"discriminator": "absent", "seed": -1})) == 2


# where layers come from


def test_what_is_set_of_a_component_is_about_the_one_a_flag_chooses(tmp_path: Path) -> None:
    # the preset's discriminator has another name; its options go, those that were asked for stay
    disc = Layer("--disc", {"discriminator": "alpha"})
    layers = gather([disc], preset="tiny", assignments=["discriminator.dim=5", "data.n=7"])
    got = resolve(layers).recipe
    assert got.discriminator is not None
    assert (got.discriminator.name, got.discriminator.options.model_dump()["dim"]) == ("alpha", 5)


def test_the_order_is_preset_file_assignments_flags(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("seed = 3\n[views]\nsize = 30\n[train]\nepochs = 30\nbatch_size = 30\n")
    layers = gather(
        [Layer("--epochs", {"train": {"epochs": 50}})],
        preset="tiny",
        recipe=file,
        assignments=["train.epochs=40", "train.batch_size=40"],
    )
    result = resolve(layers)
    got = result.recipe
    assert (got.seed, got.views.size) == (3, 30)
    assert (got.train.batch_size, got.train.epochs) == (40, 50)
    why = {key: origin for key, _, origin in result.explained()}
    assert why["data.n"] == "preset 'tiny'"
    assert why["views.size"] == str(file)
    assert why["train.batch_size"] == "--set train.batch_size"
    assert why["train.epochs"] == "--epochs"
    assert why["optimizer.lr"] == "defaults of restorer 'draw'"
    assert why["health.every"] == "default"


def test_provenance_of_a_list_names_whoever_changed_it() -> None:
    layers = gather(data="phantom", assignments=["views.geometry.0.rate=0.25"])
    why = {key: origin for key, _, origin in resolve(layers).explained()}
    assert why["views.geometry"] == "preset 'fixed', --set views.geometry.0.rate"


def test_what_was_dropped_leaves_no_trace_in_the_provenance() -> None:
    layers = gather([Layer("--disc", {"discriminator": "none"})], assignments=["restorer=draw"])
    why = {key: origin for key, _, origin in resolve(layers).explained()}
    assert why["discriminator"] == "--disc"
    low = {"discriminator": {"name": "alpha", "dim": 3}}
    why = {k: origin for k, _, origin in resolved(low, {"discriminator": "beta"}).explained()}
    assert why["discriminator.dim"] == "default"


def test_the_preset_follows_from_whether_data_are_given(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[data]\nname = 'phantom'\n")
    assert resolve(gather()).recipe.seed == 1
    assert resolve(gather(data="phantom")).recipe.seed == 2
    assert resolve(gather(recipe=file)).recipe.seed == 2
    assert resolve(gather(assignments=["data.name=phantom"])).recipe.seed == 2
    assert gather(preset="none") == []


@pytest.mark.parametrize("data", [None, "phantom"])
def test_the_preset_taken_by_default_can_be_told_afterwards(data: str | None) -> None:
    layers = gather(data=data)
    assert default_preset(layers) == layers[:1]


def test_a_preset_that_is_not_installed_is_not_taken_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dira_core.layering.PRESET_WITHOUT_DATA", "gone")
    assert gather() == []


def test_data_may_be_a_name_or_what_a_source_accepts(tmp_path: Path) -> None:
    assert gather(data="phantom")[-1].values == {"data": {"name": "phantom"}}
    chosen = {"name": "folder", "path": str(tmp_path)}
    assert gather(data=str(tmp_path))[-1].values == {"data": chosen}
    chosen = {"name": "manifest", "path": "list.csv"}
    assert gather(data="list.csv")[-1].values == {"data": chosen}


def test_a_folder_called_like_a_source_that_needs_a_path_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gather(data="cache")[-1].values == {"data": {"name": "cache"}}
    for name in ("cache", "phantom"):
        Path(name).mkdir()
    Path("cache/cache.json").touch()
    assert gather(data="cache")[-1].values == {"data": {"name": "cache", "path": "cache"}}
    assert gather(data="phantom")[-1].values == {"data": {"name": "phantom"}}


def test_the_ending_of_a_manifest_may_be_in_capitals() -> None:
    assert gather(data="LIST.CSV")[-1].values == {"data": {"name": "manifest", "path": "LIST.CSV"}}


def test_data_that_no_source_or_several_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.touch()
    with pytest.raises(RecipeError, match=r"no source.*folder"):
        gather(data=str(file))
    with pytest.raises(RecipeError, match=r"no such file or folder.*did you mean 'phantom'"):
        gather(data="phntom")
    with pytest.raises(RecipeError, match=r"again and twice.*--set data\.name=again"):
        gather(data="x.two")
    with pytest.raises(PluginError, match="absent"):
        gather(data="absent")


def test_a_source_that_cannot_say_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "shaky"
    folder.mkdir()
    with pytest.warns(UserWarning, match="shaky.*ZeroDivisionError"):
        [*_, layer] = gather(data=str(folder))
    assert layer.values["data"]["name"] == "folder"


def test_problems_of_several_wishes_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        gather(preset="tny", recipe=tmp_path / "no.toml", assignments=["x", ".=1"], data="/no")
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip().split(" ")[0] for line in lines][1:4] == ["--data", "--set", "--set"]
    assert "does not exist" in lines[0]
    assert "did you mean 'tiny'" in lines[-1]
    assert len(lines) == 5


def test_json_files_are_recipes_too(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('{"data": {"name": "phantom"}, "optimizer": {"lr_batch": null}}')
    assert resolve(gather(recipe=file)).recipe.optimizer.lr_batch is None


# writing

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DATA = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, DATA))
@settings(
    deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
def test_what_is_written_reads_back_the_same(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml.write(table)) == table


def test_numbers_keep_their_type() -> None:
    table = {"a": 1, "b": 1.0, "c": 1e-300, "d": 1e300, "e": True, "f": -0.0, "g": 2**70}
    back = tomllib.loads(toml.write(table))
    assert {key: repr(value) for key, value in back.items()} == {
        k: repr(v) for k, v in table.items()
    }


@given(
    seed=st.integers(0, 2**32 - 1),
    lr=st.floats(1e-12, 1e6),
    clip=st.none() | st.floats(1e-6, 10),
    lr_batch=st.none() | st.integers(1, 10**6),
    note=st.none() | TEXT,
    p=st.floats(0, 1),
    roles=st.sampled_from([("beta", None, None), (None, "draw", None), ("alpha", "draw", "judge")]),
)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_the_written_recipe_repeats_the_run(
    seed: int,
    lr: float,
    clip: float | None,
    lr_batch: int | None,
    note: str | None,
    p: float,
    roles: tuple[str | None, str | None, str | None],
) -> None:
    dis, res, adv = roles
    layer = {
        "seed": seed,
        "optimizer": {"lr": lr, "clip": clip, "lr_batch": lr_batch},
        "discriminator": dis and {"name": dis, "note": note},
        "restorer": res,
        "adversary": adv,
        "views": {"distort": [{"name": "either", "of": [{"name": "rate", "p": p}, "rate"]}]},
    }
    first = recipe(layer)
    written = Layer("recipe.toml", tomllib.loads(to_toml(first)))
    for preset in ("tiny", "fixed", "none"):
        below = gather(preset=preset)
        again = resolve([*below, written]).recipe
        assert again == first


def test_every_key_has_a_description_except_tables() -> None:
    for name, field in Recipe.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {})
        assert field.description or inner, name
        assert all(each.description for each in inner.values()), name


def test_the_schema_knows_every_key_and_component() -> None:
    schema = recipe_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert "required" not in schema
    [names, *tables] = schema["$defs"]["discriminator"]["oneOf"]
    assert names["enum"] == ["alpha", "beta"]
    assert [table["properties"]["name"]["const"] for table in tables] == ["alpha", "beta"]
    assert {"const": "none"} in schema["properties"]["adversary"]["anyOf"]


def test_every_error_here_is_one_a_user_can_mend() -> None:
    with pytest.raises(DiraError):
        resolved({"views": 5, "discriminator": 5, "data": [1], "train": None})
