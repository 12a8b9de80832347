"""What must hold of the code as a whole: floors, no pickle, no network, nothing heavy too early."""

from __future__ import annotations

import ast
import os
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from dira_core.components import Component
from dira_core.loading import OFFERS
from dira_core.plugins import installed
from dira_core.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
ENGINE = sorted((ROOT / "dira_core").rglob("*.py"))
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "__init__.py").is_file())
SOURCES = [*ENGINE, *sorted((ROOT / "plugins").rglob("*.py"))]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in SOURCES}

UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "poplib",
    "requests",
    "smtplib",
    "socketserver",
    "ssl",
    "telnetlib",
    "urllib",
    "urllib3",
    "xmlrpc",
}

# what a Source calls its pseudo-classes is also the name of a source
NAMESAKES = {
    f"dira_core/{name}.py": {"words"} for name in ("data/cache", "data/caching", "contracts")
}
FOREIGN = "dira_core/weightfiles.py"
ALLOWED = {
    FOREIGN: {"torch.load"},
    # what `dira bench save` compares with, on a file of its own
    "dira_core/bench/save.py": {"torch.load", "torch.save"},
    # `--init imagenet` asks for the one file that is fetched
    "dira_core/donor.py": {"torch.hub.get_dir", "torch.hub.download_url_to_file"},
}
"""What touches files of others and the network, and where alone."""


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of every module, or name of a module, that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(tree: ast.AST) -> Iterator[str]:
    """Yield the source text of whatever is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_imports_point_down_and_plugins_keep_to_public_names() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_contracts_cover_every_plugin_there_is() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert linter["root_packages"] == ["dira_core", *PLUGINS]
    lists = [
        contract.get(key)
        for contract in linter["contracts"]
        for key in ("source_modules", "forbidden_modules", "modules")
    ]
    assert lists.count(PLUGINS) == 3


@pytest.mark.parametrize("name", TREES)
def test_nothing_unpickles(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported(TREES[name])}
    assert not roots & UNPICKLING
    dangerous = re.compile(r"(torch|np|numpy)\.(load|save)|torch\.(jit|hub)\..*|eval|exec")
    found = {call for call in called(TREES[name]) if dangerous.fullmatch(call)}
    assert found <= ALLOWED.get(name, set())


def test_torch_files_of_others_are_read_for_their_tensors_alone() -> None:
    calls = [node for node in ast.walk(TREES[FOREIGN]) if isinstance(node, ast.Call)]
    (load,) = [node for node in calls if ast.unparse(node.func) == "torch.load"]
    assert "weights_only=True" in [ast.unparse(keyword) for keyword in load.keywords]


@pytest.mark.parametrize("name", TREES)
def test_nothing_uses_the_network(name: str) -> None:
    assert not {module.partition(".")[0] for module in imported(TREES[name])} & NETWORK
    sockets = [module for module in imported(TREES[name]) if module.startswith("socket")]
    # the lock of a run folder says on which host its owner runs; the launcher, where machines meet
    assert not sockets or sockets == ["socket"]
    used = {call for call in called(TREES[name]) if re.fullmatch(r"socket\.\w+", call)}
    meeting = {"socket.create_connection"} if name == "dira_core/launch.py" else set()
    assert used <= {"socket.gethostname"} | meeting
    found = {call for call in called(TREES[name]) if re.search("download|from_pretrain", call)}
    assert found <= ALLOWED.get(name, set())


def test_importing_the_package_and_its_fast_commands_loads_no_heavy_library() -> None:
    code = """
import sys
import dira_core
from dira_core.cli import command_line
from dira_core.resolving import resolve
from dira_core.layering import gather
from typer.testing import CliRunner
for words in (["--help"], ["run", "--help"], ["plugins"], ["plugins", "show", "unet"], ["config"]):
    result = CliRunner().invoke(command_line(), words)
    assert result.exit_code == 0, result.output
print(sorted({"torch", "torchvision", "numpy", "PIL", "pydicom"} & sys.modules.keys()))
"""
    assert python(code) == "[]\n"


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_engine_names_no_plugin(path: Path) -> None:
    """Neither a plugin's package nor a component it offers, but for presets that defaults name."""
    text = path.read_text()
    packages = set(PLUGINS) - set(OFFERS)  # a hook is called dira_distortions too
    assert not re.search("|".join(packages), text)
    strings = {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    offered = {
        offer.item.name
        for (kind, _), offer in installed().offers.items()
        if offer.plugin != "dira_core" and kind != "preset"
    }
    assert strings & offered <= NAMESAKES.get(path.relative_to(ROOT).as_posix(), set())


def test_no_file_holds_a_path_of_a_machine() -> None:
    machine = re.compile(r"/(?:home|Users|root|work|mnt|data)/|[A-Z]:\\\\")
    tracked = [
        *SOURCES,
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*"),
    ]
    texts = {p: p.read_text() for p in tracked if p.suffix in (".py", ".md", ".toml")}
    assert [str(p) for p, text in texts.items() if machine.search(text)] == []


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Yield the names of all keys of a model, those of its tables too."""
    for name, field in model.model_fields.items():
        yield name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner)


@cache
def read(path: str) -> set[str]:
    """Return the names of all attributes that a file reads."""
    return {
        node.attr
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def read_attributes(*folders: str) -> set[str]:
    """Return the names of all attributes that the code in some folders reads."""
    return {name for path in TREES if path.startswith(folders) for name in read(path)}


def test_every_key_of_a_recipe_is_read_by_the_engine() -> None:
    assert set(keys(Recipe)) - read_attributes("dira_core/") == set()


def test_every_option_of_every_component_is_read_by_its_plugin_or_the_engine() -> None:
    unread, seen = set(), 0
    for (kind, name), offer in installed().offers.items():
        if not isinstance(offer.item, Component):
            continue
        known = read_attributes("dira_core/", f"plugins/dira_{offer.plugin}/")
        unread |= {f"{kind} {name}: {key}" for key in set(keys(offer.item.options)) - known}
        seen += len(offer.item.options.model_fields)
    assert unread == set()
    assert seen > 30


def code_lines(path: str) -> int:
    """Count a file's lines without docstrings, comments, blank lines, imports and options."""
    passed_over: set[int] = set()
    for node in ast.walk(TREES[path]):
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        options = isinstance(node, ast.ClassDef) and node.name.endswith("Options")
        said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (imports or typing or options or said):
            passed_over |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate((ROOT / path).read_text().splitlines(), 1)
    return sum(bool(re.match(r"\s*[^\s#]", line)) for n, line in lines if n not in passed_over)


def test_a_method_is_a_plugin_of_60_lines_in_the_median() -> None:
    offers = installed().offers.items()
    methods = {offer.plugin for (kind, _), offer in offers if kind == "discriminator"}
    files = [[path for path in TREES if path.startswith(f"plugins/dira_{m}/")] for m in methods]
    assert statistics.median(sum(map(code_lines, paths)) for paths in files) <= 60
    assert len(files) >= 12
    assert all(files)


@pytest.mark.parametrize("left_out", PLUGINS)
def test_a_plugin_that_is_taken_away_takes_only_its_own_components(left_out: str) -> None:
    ours = {offer.plugin for offer in installed().offers.values()} - {"dira_core"}
    kept = sorted(ours - {left_out.removeprefix("dira_")})
    code = """
from dira_core.plugins import installed
print(sorted(f"{kind} {name}" for kind, name in installed().offers), len(installed().problems))
from dira_core.cli import command_line
from typer.testing import CliRunner
for words in (["plugins"], ["--help"], ["plugins", "show", "phantom"]):
    assert CliRunner().invoke(command_line(), words).exit_code == 0
"""
    expected = sorted(
        f"{kind} {name}"
        for (kind, name), offer in installed().offers.items()
        if offer.plugin in ("dira_core", *kept)
    )
    assert python(code, DIRA_PLUGINS=",".join(kept)) == f"{expected} 0\n"
    assert len(expected) < len(installed().offers)
