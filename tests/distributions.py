"""Fake distributions: what pip would have installed, for as long as a test takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dira_core.plugins import installed


def lay_out(folder: Path, name: str, code: str, module: str | None = None) -> str:
    """Write a module and the metadata that makes it a plugin; return the module's name.

    The metadata name `module` instead, where it is given.
    """
    folder.mkdir(exist_ok=True)
    own = f"fake_{name.replace('-', '_')}"
    (folder / f"{own}.py").write_text(code)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dira]\n{name} = {module or own}\n")
    return own


@contextmanager
def offered(folder: Path, name: str, code: str, only: str | None = None) -> Iterator[str]:
    """Install a plugin beside all others, or load `only` some; yield the name of its module."""
    module = lay_out(folder, name, code)
    with pytest.MonkeyPatch.context() as patch:
        if only is not None:
            patch.setenv("DIRA_PLUGINS", only)
        patch.syspath_prepend(str(folder))
        installed.cache_clear()
        yield module
    installed.cache_clear()
    sys.modules.pop(module, None)
