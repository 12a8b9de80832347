"""Loading and looking up components; each plugin here is a module made in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from dira_core import builtins, loading, plugins
from dira_core.components import (
    Choice,
    Component,
    DistortionOptions,
    Options,
    Preset,
)
from dira_core.errors import PluginError, RecipeError
from dira_core.hookspecs import hookimpl
from dira_core.plugins import Chosen, Plugins, installed, json_schema, load

Entry = Callable[..., EntryPoint]


class Knobs(Options):
    dim: int = Field(8, gt=0)
    must: float | None = None


class Either(DistortionOptions):
    of: list[Annotated[Choice, Chosen("distortion")]] = Field(default=[])


def component(name: str, options: type[Options] = Knobs) -> Component:
    return Component(name, options, lambda options: options, summary=f"the {name}")


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Entry:
    monkeypatch.setattr(loading, "SLOW_SECONDS", 60.0)

    def make(name: str, /, **contents: Any) -> EntryPoint:
        module = ModuleType(f"fake_{name}")
        for key, value in contents.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return EntryPoint(name, module.__name__, "dira")

    return make


def offering(*items: object) -> Callable[[], Iterator[object]]:
    def hook() -> Iterator[object]:
        yield from items

    return hookimpl(hook)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def these(*entries: EntryPoint) -> None:
        loaded = load(entries)
        monkeypatch.setattr(plugins, "installed", lambda: loaded)

    return these


def test_without_plugins_there_are_the_engines_own_components() -> None:
    alone = load([])
    assert alone.problems == ()
    assert alone.names("source") == sorted(c.name for c in builtins.dira_sources())
    assert alone.find("backbone", "resnet18").name == "resnet18"
    assert alone.provider("backbone", "resnet18").distribution.startswith("dira-ssl ")


def test_a_hook_may_return_a_list_or_yield(entry: Entry) -> None:
    returns = hookimpl(lambda: [component("listed")])
    yields = offering(component("yielded"))
    loaded = load([entry("a", dira_restorers=returns, dira_adversaries=yields)])
    assert loaded.problems == ()
    assert (loaded.names("restorer"), loaded.names("adversary")) == (["listed"], ["yielded"])
    assert loaded.provider("restorer", "listed").plugin == "a"


def test_the_order_of_installation_does_not_matter(entry: Entry) -> None:
    entries = [entry(n, dira_restorers=offering(component(f"of-{n}"))) for n in "cab"]
    forward, backward = load(entries), load(entries[::-1])
    assert [o.plugin for o in forward.offers.values()] == [
        o.plugin for o in backward.offers.values()
    ]
    assert forward.names("restorer") == ["of-a", "of-b", "of-c"]


def test_only_the_entry_points_named_are_loaded(entry: Entry) -> None:
    entries = [entry(n, dira_restorers=offering(component(n))) for n in ("one", "two", "three")]
    loaded = load(entries, only="one, three")
    assert loaded.names("restorer") == ["one", "three"]
    assert load(entries, only="").names("restorer") == []
    [problem] = load(entries, only="on").problems
    assert "did you mean 'one'" in problem.reason


def test_an_unknown_name_answers_with_the_nearest_and_all(entry: Entry) -> None:
    loaded = load([entry("a", dira_discriminators=offering(component("simsiam"), component("b")))])
    with pytest.raises(RecipeError, match=r"'simsam'.*b, simsiam.*did you mean 'simsiam'"):
        loaded.find("discriminator", "simsam")
    with pytest.raises(RecipeError, match="no preset is called 'x'"):
        loaded.preset("x")


def test_a_name_offered_twice_is_withdrawn_from_both_and_the_way_out_works(entry: Entry) -> None:
    entries = [
        entry("a", dira_restorers=offering(component("same"), component("mine"))),
        entry("b", dira_restorers=offering(component("same"), component("yours"))),
        entry("c", dira_restorers=offering(component("other"))),
    ]
    loaded = load(entries)
    assert loaded.names("restorer") == ["mine", "other", "yours"]
    assert [p.plugin for p in loaded.problems] == ["a", "b"]
    with pytest.raises(PluginError, match=r"'a'.*'b'.*DIRA_PLUGINS=a,c"):
        loaded.find("restorer", "same")
    assert load(entries, only="a,c").find("restorer", "same")


def test_the_same_name_may_stand_for_components_of_two_kinds(entry: Entry) -> None:
    hooks = {"dira_restorers": offering(component("x")), "dira_backbones": offering(component("x"))}
    assert load([entry("a", **hooks)]).problems == ()


def test_two_entry_points_of_one_name_are_told_apart(entry: Entry) -> None:
    first = entry("x", dira_restorers=offering(component("first")))
    second = entry("y", dira_restorers=offering(component("second")))
    for name, each in (("foo", first), ("bar", second)):
        vars(each).update(name="same", dist=FakeDistribution(name))
    assert load([first, second]).names("restorer") == ["first", "second"]
    assert load([first, second], only="bar:same").names("restorer") == ["second"]


class FakeDistribution:
    version = "1.0"

    def __init__(self, name: str) -> None:
        self.name = name


class NameOption(Options):
    name: str = ""


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("no component", "is no Component"),
        (Component("x", dict, print, summary=""), "subclass of Options"),  # type: ignore[arg-type]
        (Component("Bad Name", Knobs, print, summary=""), "a-z, 0-9 and -"),
        (Component("x", NameOption, print, summary=""), "option 'name'"),
        (Component("x", Knobs, None, summary=""), "cannot be called"),  # type: ignore[arg-type]
        (Component("x", Knobs, print, summary="", dims=None), "dims"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_sound_component_is_left_out_alone(
    entry: Entry, item: object, said: str
) -> None:
    loaded = load([entry("a", dira_restorers=offering(item, component("good")))])
    [problem] = loaded.problems
    assert said in problem.reason
    assert loaded.names("restorer") == ["good"]


def test_a_distortion_needs_the_options_of_distortions(entry: Entry) -> None:
    loaded = load([entry("a", dira_distortions=offering(component("x"), component("y", Either)))])
    assert loaded.names("distortion") == ["y"]
    with pytest.raises(PluginError, match="DistortionOptions"):
        loaded.find("distortion", "x")


def test_hooks_that_observe_are_called(entry: Entry) -> None:
    seen: list[str] = []

    @hookimpl
    def dira_run_ended(status: str) -> None:
        seen.append(status)

    load([entry("a", dira_run_ended=dira_run_ended)]).hook.dira_run_ended(
        folder=None, status="done"
    )
    assert seen == ["done"]


def test_a_hook_with_arguments_it_does_not_have_leaves_the_others_working(entry: Entry) -> None:
    @hookimpl
    def dira_run_ended(state: str) -> None: ...

    good = offering(component("good"))
    loaded = load([entry("a", dira_run_ended=dira_run_ended, dira_restorers=good)])
    [problem] = loaded.problems
    assert "dira_run_ended" in problem.reason
    assert loaded.names("restorer") == ["good"]
    loaded.hook.dira_run_ended(folder=None, status="done")


def test_presets_and_commands_are_listed(entry: Entry) -> None:
    preset = Preset("quick", {"seed": 1}, "quick")
    loaded = load([entry("a", dira_presets=offering(preset, "no preset"))])
    assert loaded.presets() == [preset]
    assert loaded.preset("quick") is preset
    assert len(loaded.problems) == 1


def test_what_is_installed_is_loaded_once() -> None:
    assert installed() is installed()
    assert isinstance(installed(), Plugins)


class Model(BaseModel):
    one: Annotated[Choice, Chosen("discriminator")]
    many: list[Annotated[Choice, Chosen("distortion")]] = []
    maybe: Annotated[Choice | None, Chosen("discriminator", optional=True)] = None


@pytest.fixture
def kit(entry: Entry, use: Callable[..., None]) -> None:
    use(
        entry(
            "kit",
            dira_discriminators=offering(component("alpha")),
            dira_distortions=offering(
                component("plain", DistortionOptions), component("either", Either)
            ),
        )
    )


@pytest.mark.usefixtures("kit")
class TestChosen:
    def test_a_name_a_table_and_a_choice_mean_the_same(self) -> None:
        choice = Choice("alpha", Knobs())
        given: list[Any] = ["alpha", {"name": "alpha"}, choice, {"name": "alpha", "dim": 8}]
        assert [Model(one=one).one for one in given] == [choice] * 4

    @pytest.mark.parametrize("given", [None, "none", {"name": "none"}])
    def test_an_optional_choice_may_be_none(self, given: Any) -> None:
        assert Model(one="alpha", maybe=given).maybe is None

    @pytest.mark.parametrize("given", [None, "none", 3, [], {}, {"name": 3}, {"dim": 3}])
    def test_a_choice_that_is_not_optional_needs_a_name(self, given: Any) -> None:
        with pytest.raises(ValidationError):
            Model(one=given)

    def test_problems_of_options_keep_their_key_path(self) -> None:
        nested = {"name": "either", "of": [{"name": "plain"}, {"name": "plain", "p": 2}]}
        with pytest.raises(ValidationError) as caught:
            Model.model_validate({"one": {"name": "alpha", "dim": 0, "x": 1}, "many": [nested]})
        places = {error["loc"] for error in caught.value.errors()}
        assert places == {("one", "dim"), ("one", "x"), ("many", 0, "of", 1, "p")}

    def test_it_is_written_flat_and_reads_back_the_same(self) -> None:
        inner = {"name": "either", "of": ["plain", {"name": "either", "of": ["plain"], "p": 0.5}]}
        model = Model.model_validate({"one": "alpha", "many": [inner], "maybe": "alpha"})
        dumped = model.model_dump(mode="json")
        assert dumped["one"] == {"name": "alpha", "dim": 8, "must": None}
        assert dumped["many"][0]["of"][1]["of"] == [{"name": "plain", "p": 1.0}]
        assert Model.model_validate(dumped) == model
        assert Model.model_validate_json(model.model_dump_json()) == model

    def test_the_schema_offers_each_component_with_its_own_options(self) -> None:
        schema = json_schema(Model)
        [names, table] = schema["$defs"]["discriminator"]["oneOf"]
        assert names == {"enum": ["alpha"]}
        assert table["properties"]["name"] == {"const": "alpha"}
        assert table["properties"]["dim"]["exclusiveMinimum"] == 0
        assert table["additionalProperties"] is False
        assert {"const": "none"} in table["properties"]["must"]["anyOf"]

    def test_the_schema_of_distortions_within_distortions_refers_to_itself(self) -> None:
        schema = json_schema(Model)
        either = schema["$defs"]["distortion"]["oneOf"][1]
        assert either["properties"]["of"]["items"] == {"$ref": "#/$defs/distortion"}
        for reference in references(schema):
            assert reference.removeprefix("#/$defs/") in schema["$defs"]

    def test_an_unknown_component_is_a_problem_of_its_key(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Model(one="alpa")
        [error] = caught.value.errors()
        assert error["loc"] == ("one",)
        assert "did you mean 'alpha'" in error["msg"]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["$ref"]] if "$ref" in node else []
        for value in node.values():
            yield from references(value)
    if isinstance(node, list):
        for value in node:
            yield from references(value)
