"""The documentation is true: its examples run, its recipes resolve, its tables are the program's.

What happens to a fenced block depends on its first line:

    ```python                      executed, all of one page in one namespace and folder
    ```console                     lines after `$ ` are run; what is shown below must be printed,
                                   where `...` stands for anything; `# exits with 2` is checked
    ```toml                        resolved as a recipe over the default preset
    ```LANGUAGE title="NAME"       written to a file of that name for the blocks that follow
    ```sh, ```text, ```json        only read

`<!-- skip: reason -->` on the line above leaves a block out.
"""

from __future__ import annotations

import csv
import doctest
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from spare import spare

from dira_core import toml
from dira_core.cli import command_line
from dira_core.data.phantom import PhantomSource
from dira_core.files import FAILPOINTS
from dira_core.health import SIGNS
from dira_core.layering import gather
from dira_core.plugins import installed
from dira_core.resolving import resolve
from dira_core.source_options import PhantomOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- skip: (?P<skip>.+?) -->\n)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SMALL = "--backbone resnet18 --size 32 --batch-size 8 --set discriminator.dim=64"
"""Added to every `dira run` of the documentation, whose own flags are parsed all the same."""

IMAGES = 24


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    skip: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["title"], found["text"], found["skip"])


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder as a reader has it: `radiographs/` and a `labels.csv` of them."""
    source = PhantomSource(PhantomOptions(n=IMAGES, size=64))
    assert source.labels is not None
    (tmp_path / "radiographs").mkdir()
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "finding", "split"])
        for i in range(IMAGES):
            name = f"radiographs/{i:04}.png"
            Image.fromarray(source.read(i).pixels[0]).save(tmp_path / name)
            writer.writerow([name, int(source.labels[i]), "train" if i // 4 % 4 else "test"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a `dira` that need not import torch first."""
    with spare(tmp_path_factory.mktemp("spare")) as folder:
        yield folder


def environment(folder: Path, program: Path) -> dict[str, str]:
    """Return an environment in which `pip install .` goes to a folder of its own."""
    site = folder / ".site"
    programs = os.pathsep.join([str(program), str(Path(sys.executable).parent)])
    return os.environ | {
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as: no, without
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_TARGET": str(site),
        "PYTHONPATH": str(site),
    }


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block and the output shown below it."""
    for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = piece.replace("\\\n", "").splitlines()
        yield lines[0], "\n".join(lines[1:]).strip()


def run_console(block: Block, folder: Path, program: Path) -> None:
    """Run the commands of a block; compare exit codes and what is shown."""
    for command, shown in commands(block.text):
        words, _, promise = command.partition("  # exits with ")
        if words.startswith("dira run") and "--resume" not in words:
            words = f"{words} {SMALL}" + (" --epochs 1" if "--epochs" not in words else "")
        done = subprocess.run(
            ["bash", "-c", words],
            cwd=folder,
            env=environment(folder, program),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == int(promise or 0), f"{block}: $ {words}\n{done.stdout}"
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        fits = doctest.OutputChecker().check_output(f"{shown}\n", done.stdout, flags)
        assert fits or not shown, f"{block}: $ {words}\nshown:\n{shown}\nprinted:\n{done.stdout}"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_example_of_a_page_runs(page: Path, workshop: Path, program: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks(page):
        if block.skip:
            continue
        if block.title:
            path = workshop / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), namespace)
        elif block.language == "console":
            run_console(block, workshop, program)
        elif block.language == "toml":
            path = workshop / "block.toml"
            path.write_text(block.text)
            resolve(gather(recipe=path))


def test_only_what_the_gate_runs_itself_is_skipped() -> None:
    skipped = [block for page in PAGES for block in blocks(page) if block.skip]
    assert [block.page.name for block in skipped] == ["README.md"]
    assert "dira run --disc simsiam --res unet --adv patchgan" in skipped[0].text


def test_languages_are_those_this_test_knows() -> None:
    known = {"python", "console", "toml", "sh", "text", "json"}
    assert {block.language for page in PAGES for block in blocks(page)} <= known


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/reference.py"))


@pytest.mark.parametrize("name", ["api.md", "recipe.md"])
def test_generated_pages_are_what_the_program_says(name: str, reference: dict[str, Any]) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == reference["PAGES"][name](), "run `python docs/reference.py`"


def test_every_command_and_every_flag_is_on_the_page_of_the_command_line(
    reference: dict[str, Any],
) -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(dira[^`]*)`\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    now = re.findall(
        r"^## `(dira[^`]*)`\n(.*?)(?=^## )", reference["cli"](), re.MULTILINE | re.DOTALL
    )
    # not the very text: how it is laid out is typer's business, and differs by version
    assert [path for path, _ in sections] == [path for path, _ in now]
    for (path, written), (_, real) in zip(sections, now, strict=True):
        flags = [sorted(set(re.findall(r"--[a-z][a-z-]+", text))) for text in (written, real)]
        assert flags[0] == flags[1], f"{path}: run `python docs/reference.py`"
    assert len(sections) == len(reference["commands"](command_line()))


BASES = ("paper", "released", "fixed")
METHODS = ("mocov2", "barlow", "simsiam")


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a recipe as `--set` writes them; entries of lists by position."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
        return
    yield path, value
    if isinstance(value, list):
        for position, entry in enumerate(value):
            if isinstance(entry, dict):
                yield from flat(entry, f"{path}.{position}")


def preset_values(preset: str, stage: str = "") -> dict[str, Any]:
    """Return every key of a preset's recipe, or of one stage of it."""
    recipe = resolve(gather(preset=preset, data="phantom")).recipe
    if stage:
        recipe = recipe.at_stage([each.name for each in recipe.stages].index(stage))
    return dict(flat(recipe.model_dump(mode="json")))


def shown(values: dict[str, Any], key: str) -> str:
    """Return what a cell of the page of presets says of a key."""
    value = values.get(key, "-")
    value = float(f"{value:.6g}") if isinstance(value, float) else value
    return "`-`" if value == "-" else f"`{toml.value(value)}`"


def preset_tables() -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the names of the presets and the rows of each table of keys."""
    page = (ROOT / "docs/presets.md").read_text(encoding="utf-8")
    for table in re.findall(r"^\| key \|.*\n(?:\|.*\n)+", page, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in row.split("|")] for row in table.splitlines()]
        yield head[2:-2], [row[1:-2] for row in rows]


def test_the_tables_of_presets_hold_the_values_of_the_presets() -> None:
    tables = list(preset_tables())
    assert [names for names, _ in tables] == [
        [*BASES],
        ["released: dir", "released: dira"],
        *([f"{base}/{method}" for base in BASES] for method in METHODS),
    ]
    for names, rows in tables:
        for column, name in enumerate(names, 1):
            preset, _, stage = name.partition(": ")
            all_of_them = [preset, *(f"{preset}/{method}" for method in METHODS)]
            for one in all_of_them if preset in BASES else [preset]:
                values = preset_values(one, stage)
                for row in rows:
                    key = row[0].strip("`")
                    assert row[column] == shown(values, key), f"{key} of {one} {stage}"


def test_whatever_differs_between_presets_of_a_method_is_in_a_table() -> None:
    told = {row[0].strip("`") for _, rows in preset_tables() for row in rows}
    for method in METHODS:
        values = [preset_values(f"{base}/{method}") for base in BASES]
        differing = {
            key
            for key in set().union(*values)
            if len({shown(each, key) for each in values}) > 1
            and not key.startswith(("views.", "stages"))
        }
        assert differing <= told


def test_every_discriminator_has_a_page_that_names_its_optimizer() -> None:
    folder = ROOT / "docs/methods"
    table = re.findall(
        r"^\| `(\w+)` \| (\d)[^|]* \| [^|]+ \| (\w+)",
        (folder / "discriminators.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    pages = {page.stem for page in folder.glob("*.md")}
    ours = {
        component.name: component
        for component in installed().components("discriminator")
        if installed().offers["discriminator", component.name].distribution.startswith("dira-ssl ")
    }
    assert {name for name, _, _ in table} == set(ours) - pages
    for name, _, optimizer in table:
        assert ours[name].defaults["optimizer"]["name"] == optimizer.lower()


def test_the_readme_names_every_component_and_shows_the_example_plugin() -> None:
    text = (ROOT / "README.md").read_text()
    ours = {
        offer.item.name
        for offer in installed().offers.values()
        if offer.distribution.startswith("dira-ssl ")
    }
    assert {name for name in ours if f"`{name}`" not in text} == set()
    plugin = (ROOT / "examples/dira-tiny-plugin/dira_tiny.py").read_text()
    tutorial = [block.text for block in blocks(ROOT / "docs/plugins.md")]
    assert plugin in tutorial
    assert (ROOT / "examples/dira-tiny-plugin/pyproject.toml").read_text() in tutorial


def test_every_failpoint_and_exit_code_is_on_the_page_of_reliability() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    assert {name for name in FAILPOINTS if f"`{name}`" not in text} == set()
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 75, 130, 143):
        assert f"| {code} |" in text


def test_every_alarm_is_on_the_page_of_concepts_with_its_threshold() -> None:
    text = (ROOT / "docs/concepts.md").read_text()
    for sign in SIGNS:
        above = f"above {sign.times_first:g} times its first value"
        limit = above if sign.below == -math.inf else f"below {sign.below:g}"
        assert f"| `{sign.name}` | `{sign.metric}` is {limit}: " in text


def test_every_hook_is_explained() -> None:
    from dira_core import hookspecs

    text = (ROOT / "docs/plugins.md").read_text()
    hooks = [name for name in vars(hookspecs) if name.startswith("dira_")]
    assert {hook for hook in hooks if f"`{hook}`" not in text} == set()
