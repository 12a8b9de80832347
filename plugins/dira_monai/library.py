"""The library itself, which dira runs without."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from dira_core import PluginError
from dira_monai import DynUNetOptions, SwinOptions, UNetOptions

NORMS = {"instance": ("INSTANCE", {"affine": True}), "batch": ("BATCH", {})}


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


@dataclass(frozen=True)
class Call:
    """A call that makes a network of MONAI.

    Attributes:
        name: Of its class in `monai.networks.nets`.
        arguments: What the class is called with.
    """

    name: str
    arguments: dict[str, Any]

    def network(self) -> Any:
        """Return the network."""
        return getattr(monai("networks.nets"), self.name)(**self.arguments)

    def code(self) -> str:
        """Return Python that makes it, as `model`."""
        lines = "".join(f"    {key}={value!r},\n" for key, value in self.arguments.items())
        return f"from monai.networks.nets import {self.name}\n\nmodel = {self.name}(\n{lines})"


def unet(options: UNetOptions, dims: int, channels: int, outputs: int) -> Call:
    """Return what makes MONAI's `UNet`."""
    arguments = {
        "spatial_dims": dims,
        "in_channels": channels,
        "out_channels": outputs,
        "channels": options.widths,
        "strides": [2] * (len(options.widths) - 1),
        "num_res_units": options.units,
        "norm": options.norm,
    }
    return Call("UNet", arguments)


def dynunet(options: DynUNetOptions, dims: int, channels: int, outputs: int) -> Call:
    """Return what makes MONAI's `DynUNet`."""
    maps = len(options.widths)
    halving = [2] * (maps - 1)
    arguments = {
        "spatial_dims": dims,
        "in_channels": channels,
        "out_channels": outputs,
        "kernel_size": [3] * maps,
        "strides": [1, *halving],
        "upsample_kernel_size": halving,
        "filters": options.widths,
        "norm_name": NORMS[options.norm],
        "res_block": options.residual,
    }
    return Call("DynUNet", arguments)


def swin(options: SwinOptions, dims: int, channels: int, outputs: int) -> Call:
    """Return what makes MONAI's `SwinUNETR`."""
    arguments = {
        "in_channels": channels,
        "out_channels": outputs,
        "feature_size": options.features,
        "window_size": options.window,
        "norm_name": options.norm,
        "spatial_dims": dims,
        "use_v2": options.v2,
    }
    return Call("SwinUNETR", arguments)
