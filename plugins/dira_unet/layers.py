"""What encoder and decoder are made of."""

from __future__ import annotations

from typing import Literal

from torch import nn

from dira_core import conv, norm_layer


def conv_norm_relu(
    dims: int, inputs: int, outputs: int, norm: Literal["batch", "instance", "group"]
) -> nn.Sequential:
    """Return a 3x3 convolution without a bias, a norm and a ReLU."""
    layer = conv(dims, inputs, outputs, bias=False)
    nn.init.kaiming_uniform_(layer.weight, mode="fan_in", nonlinearity="relu")
    return nn.Sequential(layer, norm_layer(norm, dims, outputs), nn.ReLU(inplace=True))
