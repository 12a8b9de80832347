"""Broken third-party plugins, as real distributions on the path: none takes the engine down."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributions import lay_out

from dira_core import loading
from dira_core.errors import PluginError, RecipeError
from dira_core.plugins import Plugins, installed

pytestmark = pytest.mark.faults

HEALTHY = """
from dira_core import Component, Options, hookimpl

@hookimpl
def dira_restorers():
    yield Component("{name}", Options, lambda *parts: parts, summary="works")
"""

BROKEN = {
    "import-error": ("raise RuntimeError('half\\x1b written')", "RuntimeError: half\\x1b written"),
    "system-exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "newer-level": ("DIRA_API = 99" + HEALTHY, "API level 99"),
    "older-level": ("DIRA_API = 0" + HEALTHY, "API level 0"),
    "no-level": ("DIRA_API = '1'" + HEALTHY, "API level '1'"),
    "missing-extra": ("import scipyy.sparse", "needs the module 'scipyy'"),
    "no-options": (HEALTHY.replace("Options, lambda", "None, lambda"), "subclass of Options"),
    "misspelt-hook": (HEALTHY.replace("restorers", "restorer"), "did you mean 'dira_restorers'"),
    "unmarked-hook": (HEALTHY.replace("@hookimpl", ""), "without @hookimpl"),
    "hook-raises": (HEALTHY.replace("    yield", "    1 / 0\n    yield"), "ZeroDivisionError"),
    "hook-exits": (HEALTHY.replace("    yield", "    exit(1)\n    yield"), "SystemExit"),
    "no-iterable": (HEALTHY.replace("    yield", "    return"), "not iterable"),
}

IMPOLITE = {
    "slow-import": ("import time; time.sleep(0.06)" + HEALTHY, "to load, more than"),
    "prints": ("print('hello')" + HEALTHY, "prints"),
    "mutates-rng": ("import random; random.random()" + HEALTHY, "`random`"),
}


def distribution(folder: Path, name: str, code: str, module: str | None = None) -> None:
    lay_out(folder, name, code.replace("{name}", name), module)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Plugins]]:
    """Load fake distributions, `healthy` always among them, and nothing else but the built-ins."""
    monkeypatch.setattr(loading, "SLOW_SECONDS", 60.0)
    modules = set(sys.modules)

    def load(*names: str) -> Plugins:
        distribution(tmp_path, "healthy", HEALTHY)
        monkeypatch.setenv("DIRA_PLUGINS", ",".join(["healthy", *names]))
        monkeypatch.syspath_prepend(str(tmp_path))
        installed.cache_clear()
        return installed()

    yield load
    installed.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith("fake_"):
            del sys.modules[name]


def others_work(plugins: Plugins) -> bool:
    return "healthy" in plugins.names("restorer") and "phantom" in plugins.names("source")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_one_problem_with_a_cause_and_a_way_out(
    name: str, tmp_path: Path, loaded: Callable[..., Plugins]
) -> None:
    code, said = BROKEN[name]
    distribution(tmp_path, name, code)
    plugins = loaded(name)
    assert others_work(plugins)
    [problem] = plugins.problems
    assert (problem.plugin, problem.distribution) == (name, f"{name} 1.0")
    assert said in problem.reason
    assert problem.way_out
    assert not problem.warning
    assert "\n" not in str(problem)
    assert "\x1b" not in str(problem)


@pytest.mark.parametrize("name", BROKEN)
def test_asking_for_a_broken_plugin_by_name_shows_the_cause(
    name: str, tmp_path: Path, loaded: Callable[..., Plugins]
) -> None:
    code, said = BROKEN[name]
    distribution(tmp_path, name, code)
    plugins = loaded(name)
    with pytest.raises(PluginError) as caught:
        plugins.find("restorer", name)
    assert said in str(caught.value)
    assert caught.value.exit_code == 4
    assert caught.value.__cause__ is plugins.problems[0].cause
    with pytest.raises(RecipeError, match="a broken plugin may offer it"):
        plugins.find("restorer", "something-else")


@pytest.mark.parametrize("name", IMPOLITE)
def test_an_impolite_plugin_works_with_a_warning(
    name: str,
    tmp_path: Path,
    loaded: Callable[..., Plugins],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = IMPOLITE[name]
    distribution(tmp_path, name, code)
    if name == "slow-import":
        monkeypatch.setattr(loading, "SLOW_SECONDS", 0.05)
    plugins = loaded(name)
    assert others_work(plugins)
    assert plugins.find("restorer", name)
    [problem] = [p for p in plugins.problems if p.plugin == name and said in p.reason]
    assert problem.warning
    assert capsys.readouterr().out == ""


def test_the_state_of_random_is_put_back(tmp_path: Path, loaded: Callable[..., Plugins]) -> None:
    distribution(tmp_path, "mutates-rng", IMPOLITE["mutates-rng"][0])
    before = random.getstate()
    loaded("mutates-rng")
    assert random.getstate() == before


def test_an_entry_point_to_nothing_says_so(tmp_path: Path, loaded: Callable[..., Plugins]) -> None:
    distribution(tmp_path, "nothing", "", module="fake_absent.inner")
    plugins = loaded("nothing")
    assert others_work(plugins)
    assert "entry point to nothing" in plugins.problems[0].reason


def test_a_duplicate_name_is_withdrawn_from_both(
    tmp_path: Path, loaded: Callable[..., Plugins]
) -> None:
    for name in ("left", "right"):
        distribution(tmp_path, name, HEALTHY.replace("{name}", "same"))
    plugins = loaded("left", "right")
    assert others_work(plugins)
    with pytest.raises(PluginError, match=r"left 1\.0.*right 1\.0.*DIRA_PLUGINS=healthy,left$"):
        plugins.find("restorer", "same")


def test_what_a_hook_yields_before_it_raises_works(
    tmp_path: Path, loaded: Callable[..., Plugins]
) -> None:
    distribution(tmp_path, "half", HEALTHY + "    raise ValueError('no more')\n")
    plugins = loaded("half")
    assert plugins.find("restorer", "half")
    assert "no more" in plugins.problems[0].reason


def test_ctrl_c_while_a_plugin_loads_is_no_problem_of_the_plugin(
    tmp_path: Path, loaded: Callable[..., Plugins]
) -> None:
    distribution(tmp_path, "interrupted", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        loaded("interrupted")


@pytest.mark.slow
def test_all_of_them_at_once_leave_the_command_line_working(tmp_path: Path) -> None:
    codes = {name: code for name, (code, _) in {**BROKEN, **IMPOLITE}.items()}
    codes["imports-torch"] = "import torch" + HEALTHY
    for name, code in {**codes, "healthy": HEALTHY}.items():
        distribution(tmp_path, name, code)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "dira_core", "plugins", "--json"],
        env={**os.environ, "PYTHONPATH": path, "DIRA_PLUGINS": ",".join([*codes, "healthy"])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert {problem["plugin"] for problem in document["problems"]} >= set(codes) - {"slow-import"}
    assert "healthy" in {row["name"] for row in document["components"]}
    torch = [p for p in document["problems"] if p["plugin"] == "imports-torch"]
    assert any("imports torch" in problem["reason"] and problem["warning"] for problem in torch)
