"""`dira`, `dira plugins` and the verbs of plugins; a fake distribution brings the components."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from distributions import offered
from kit import Dira

from dira_core import __version__
from dira_core.errors import DataError

PLUGIN = """
import typer
from typing import Literal
from pydantic import Field
from dira_core import Command, Component, DistortionOptions, Options, Preset, hookimpl

class Dis(Options):
    dim: int = Field(8, gt=0, description="width of z")
    must: float = Field(description="no default")
    clip: float | None = Field(None, description="may be none")

@hookimpl
def dira_discriminators():
    yield Component("alpha", Dis, print, summary="first letter", paper="arXiv:1", dims=(2,))

@hookimpl
def dira_restorers():
    yield Component("alpha", Options, print, summary="same name, other kind")

@hookimpl
def dira_distortions():
    yield Component("blot", DistortionOptions, print, summary="ink")

@hookimpl
def dira_presets():
    yield Preset("quick", {"seed": 4, "optimizer": {"clip": None}}, "soon done")

def greet(name: str = "you"):
    print(f"hello {name}")

def unreadable(what: "Missing"): ...

def fail():
    from dira_core import DataError
    raise DataError("nothing in [folder]")

def bug():
    raise ZeroDivisionError("a bug")

def interrupted():
    raise KeyboardInterrupt

@hookimpl
def dira_commands():
    for function in (greet, unreadable, fail, bug, interrupted):
        yield Command(function.__name__, function, "verb of a plugin")
    yield Command("run", greet, "takes the engine's place")
    several = typer.Typer()
    several.command()(greet)
    several.command()(fail)
    yield Command("several", several, "verbs of a plugin")

def dira_restorer(): ...
dira_restorer = hookimpl(dira_restorer)
"""


@pytest.fixture(autouse=True)
def _fake_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with offered(tmp_path, "kit", PLUGIN, only="kit"):
        yield


def test_the_version_is_that_of_the_package(dira: Dira) -> None:
    assert dira("--version")[:2] == (0, f"dira {__version__}\n")


def test_without_arguments_it_helps(dira: Dira) -> None:
    _, out, err = dira()
    assert "Usage: dira" in out + err


def test_help_lists_the_verbs_of_engine_and_plugins(dira: Dira) -> None:
    code, out, err = dira("--help")
    assert code == 0
    for verb in ("run", "config", "plugins", "data", "bench", "greet"):
        assert f"\n  {verb} " in out
    assert "unreadable" not in out
    assert "--install-completion" in out
    assert "'unreadable' is left out" in err
    assert "'run' is left out: the engine has" in err


def test_the_verb_of_a_plugin_runs(dira: Dira) -> None:
    assert dira("greet", "--name", "Ada")[:2] == (0, "hello Ada\n")


def test_a_plugin_may_bring_verbs_below_its_own(dira: Dira) -> None:
    assert dira("several", "greet", "--name", "Ada")[:2] == (0, "hello Ada\n")
    assert dira("several", "fail")[0] == DataError.exit_code
    assert "verbs of a plugin" in dira("--help")[1]


def test_an_error_a_user_can_mend_is_plain_and_has_its_exit_code(dira: Dira) -> None:
    code, out, err = dira("fail")
    assert (code, out) == (DataError.exit_code, "")
    assert err.splitlines()[-1] == "error: nothing in [folder]"


def test_an_interrupt_exits_with_130_and_one_line(dira: Dira) -> None:
    code, out, err = dira("interrupted")
    assert (code, out) == (130, "")
    assert err.endswith("interrupted; what was saved stays, and --help says how to go on\n")


def test_wrong_usage_exits_with_2(dira: Dira) -> None:
    assert dira("frobnicate")[0] == 2
    assert dira("plugins", "show")[0] == 2


def test_a_bug_is_not_dressed_up(dira: Dira) -> None:
    with pytest.raises(ZeroDivisionError):
        dira("bug")


def test_the_table_shows_kind_name_provider_axes_and_problems(dira: Dira) -> None:
    code, out, _ = dira("plugins")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["kind", "name", "provider", "dims", "summary"] in lines
    assert ["discriminator", "alpha", "kit", "(kit", "1.0)", "2", "first", "letter"] in lines
    assert "plugin 'kit' (kit 1.0) implements dira_restorer, which is no hook" in out


def test_the_table_as_json_says_the_same(dira: Dira) -> None:
    code, out, _ = dira("plugins", "--json")
    document = json.loads(out)
    assert code == 0
    rows = {(row["kind"], row["name"]): row for row in document["components"]}
    assert rows["discriminator", "alpha"] == {
        "kind": "discriminator",
        "name": "alpha",
        "plugin": "kit",
        "distribution": "kit 1.0",
        "dims": [2],
        "summary": "first letter",
    }
    assert ("preset", "quick") in rows
    assert ("backbone", "resnet18") in rows
    [problem] = document["problems"]
    assert problem["plugin"] == "kit"
    assert problem["way_out"]


def test_a_component_is_shown_with_every_option(dira: Dira) -> None:
    code, out, _ = dira("plugins", "show", "alpha")
    assert code == 0
    assert "discriminator alpha: first letter" in out
    assert "restorer alpha: same name, other kind" in out
    assert "paper: arXiv:1" in out
    assert "dim: int, Gt(gt=0), default 8" in out
    assert "width of z" in out
    assert "must: float, required" in out
    assert 'clip: float | None, default "none"' in out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phantom", {"data": {"name": "phantom", "n": 2048, "size": 96}}),
        ("blot", {"views": {"distort": [{"name": "blot", "p": 1.0}]}}),
        ("resnet18", {"backbone": {"name": "resnet18", "zero_init_residual": False}}),
    ],
)
def test_the_snippet_is_a_recipe(dira: Dira, name: str, expected: object) -> None:
    snippet = dira("plugins", "show", name)[1].partition("in a recipe")[2]
    assert tomllib.loads(snippet) == expected


def test_a_preset_is_shown_as_a_recipe(dira: Dira) -> None:
    out = dira("plugins", "show", "quick")[1]
    recipe = tomllib.loads(out.partition("\n\n")[2])
    assert recipe == {"seed": 4, "optimizer": {"clip": "none"}}


def test_an_unknown_name_gets_the_nearest(dira: Dira) -> None:
    code, _, err = dira("plugins", "show", "alpa")
    assert (code, "did you mean 'alpha'" in err) == (2, True)


def test_a_check_says_what_holds_and_what_does_not(
    dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    testing = ModuleType("dira_core.testing")
    monkeypatch.setitem(sys.modules, "dira_core.testing", testing)
    vars(testing)["check"] = lambda kind, name, **options: [
        ("options round trip", None),
        ("builds", "it did not" if kind == "restorer" else None),
        ("not checked: path must be given", None),
    ]
    code, out, err = dira("plugins", "check", "alpha")
    assert code == 4
    assert "discriminator alpha: builds: ok" in out
    assert "restorer alpha: builds: FAILED, it did not" in out
    assert "discriminator alpha: not checked: path must be given\n" in out
    assert "1 checks" in err
    assert dira("plugins", "check", "phantom")[0] == 0
    assert dira("plugins", "check", "quick")[0] == 2
    assert dira("plugins", "check", "nothing")[0] == 2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins"], ["--version"], ["plugins", "--json"]]
)
@pytest.mark.parametrize("plugins", [None, ""])
def test_help_and_plugins_import_nothing_heavy(arguments: list[str], plugins: str | None) -> None:
    code = (
        "import sys; from dira_core.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'pydicom', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DIRA_PLUGINS"}
    environment |= {} if plugins is None else {"DIRA_PLUGINS": plugins}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dira_core", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"dira {__version__}\n"
