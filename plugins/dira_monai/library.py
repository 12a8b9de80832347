"""The library itself, which dira runs without."""

from __future__ import annotations

import importlib
from typing import Any

from dira_core import PluginError


def monai(module: str) -> Any:
    """Import a module of MONAI, for example "networks.nets".

    Raises:
        PluginError: MONAI is not installed, or what its Swin transformer needs.
    """
    try:
        importlib.import_module("einops")
        return importlib.import_module(f"monai.{module}")
    except ImportError as error:
        raise PluginError(
            "the networks of MONAI need monai and einops, and at least one is not installed: "
            "pip install 'dira-ssl[monai]'"
        ) from error
