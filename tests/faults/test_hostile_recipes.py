"""Recipe files written by nobody's friend: one plain error each, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dira_core import toml
from dira_core.errors import DiraError, RecipeError
from dira_core.layering import Layer, file_layer, gather
from dira_core.plugins import installed
from dira_core.problems import MOST_LISTED
from dira_core.resolving import resolve

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True, scope="module")
def _no_plugins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIRA_PLUGINS", "")
        installed.cache_clear()
        yield
    installed.cache_clear()


MANY_TABLES = "".join(f"[{'a.' * 30}k{n}]\n" for n in range(3000))

HOSTILE: dict[str, tuple[bytes, str]] = {
    "deep.toml": (b"a = " + b"[" * 20_000, "deep"),
    "closed.toml": (b"a = " + b"[" * 20_000 + b"]" * 20_000, "deep"),
    "dotted.toml": (b"a." * 20_000 + b"a = 1", "deep"),
    "header.toml": (b"[" + b"a." * 20_000 + b"a]", "deep"),
    "tables.toml": (MANY_TABLES.encode(), "no such key"),
    "deep.json": (b'{"a":' * 20_000, "deep"),
    "wide-and-deep.json": (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "deep"),
    "twice.toml": (b"seed = 1\nseed = 2", "cannot overwrite a value"),
    "twice.json": (b'{"seed": 1, "seed": 2}', "'seed' is repeated"),
    "nan.toml": (b"optimizer = {lr = nan}", "optimizer.lr"),
    "inf.toml": (b"optimizer = {lr = inf}", "optimizer.lr"),
    "nan.json": (b'{"seed": NaN}', "NaN is no number"),
    "inf.json": (b'{"seed": -Infinity}', "Infinity is no number"),
    "big-float.json": (b'{"optimizer": {"lr": 1e999}}', "optimizer.lr"),
    "digits.toml": (b"seed = " + b"9" * 5000, "digits"),
    "digits.json": (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
    "huge-number.toml": (b"seed = " + b"9" * 4000, "seed: "),
    "latin.toml": ("note = 'é'".encode("latin-1"), "not UTF-8 at byte 8"),
    "utf16.toml": ("seed = 1".encode("utf-16"), "byte order mark"),
    "bom.toml": (b"\xef\xbb\xbfseed = 1", "byte order mark"),
    "bom.json": (b"\xef\xbb\xbf{}", "byte order mark"),
    "nul.toml": (b"\x00" * 100, "line 1"),
    "list.json": (b"[1]", "a list"),
    "text.json": (b'"seed"', "a str"),
    "empty.json": (b"", "not readable"),
    "unknown.toml": (b"sede = 1", "did you mean 'seed'"),
    "many.toml": (b"".join(b"k%d = 1\n" % n for n in range(20_000)), "and 19982 more"),
    "long-key.toml": (b"k" * 200_000 + b" = 1", "no such key"),
    "escape.toml": (b'"\\u001b[31m" = 1', "\\x1b[31m"),
    "scalar.toml": (b"views = 5\ntrain = 'x'\noptimizer = []", "views: "),
    "wrong.toml": (b"data = [1]\nbackbone = 1979-05-27\ndiscriminator = {}", "backbone: "),
    "choice.toml": (b"data = {name = {name = 'phantom'}}", "data: "),
    "position.toml": ("[views.distort]\n²=1".encode(), "line 2"),
    "large.toml": (b"#" * (toml.MAX_BYTES + 1), "at most 256 KiB"),
}


def message(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(gather(preset="none", recipe=path))
    return str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_error_that_names_the_file_and_the_fault(
    name: str, tmp_path: Path
) -> None:
    content, said = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    text = message(tmp_path / name)
    assert said in text
    assert name in text
    assert text.count("\n") <= MOST_LISTED + 1
    assert max(map(len, text.splitlines())) < 600
    assert "\x1b" not in text


def test_a_key_of_many_parts_never_reaches_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    monkeypatch.setattr("tomllib.loads", parsed.append)  # its time grows by the square
    (tmp_path / "dotted.toml").write_bytes(HOSTILE["dotted.toml"][0])
    assert "deep" in message(tmp_path / "dotted.toml")
    assert parsed == []


def test_a_hundred_megabytes_are_refused_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    assert "at most 256 KiB" in message(path)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        assert "is no file" in message(path)
    for path in (tmp_path / "absent", tmp_path / "loop", Path("a\0b"), Path("x" * 5000)):
        assert message(path)


@given(st.binary(max_size=200), st.sampled_from(["r.toml", "r.json"]))
@settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_arbitrary_bytes_are_a_table_or_one_error(
    tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        layer = file_layer(tmp_path / name)
    except RecipeError:
        return
    assert isinstance(layer.values, dict)


TABLES = ["data", "views", "train", "optimizer", "backbone", "discriminator", "adversary", "log"]
NAMES = ["seed", "name", "path", "size", "distort", "trackers", "0", "none", "nmae", "", "a.b"]
KEYS = st.sampled_from([*TABLES, *NAMES, "__class__", "\x1b[31m"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["none", "phantom", "folder", "resnet18", "~", "../..", "$HOME", "{0}", ""])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=6), min_size=1, max_size=3))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_arbitrary_values_are_a_recipe_or_one_error(layers: list[dict[str, object]]) -> None:
    said = ""
    try:
        resolve([Layer(f"layer {n}", layer) for n, layer in enumerate(layers)])
    except DiraError as error:
        said = str(error)
    assert "\x1b" not in said


def test_the_command_line_says_it_plainly_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("seed = [cpu]\n")
    done = subprocess.run(
        [sys.executable, "-m", "dira_core", "config", "--recipe", str(tmp_path / "bad.toml")],
        env={**os.environ, "DIRA_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/bad.toml: ")
    assert "Traceback" not in done.stderr
