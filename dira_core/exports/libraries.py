"""Weights in the networks of other libraries; those of torchvision, timm and smp."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dira_core.errors import RecipeError
from dira_core.export import Pretrained
from dira_core.exports.networks import (
    Encoder,
    Restoring,
    Written,
    difference,
    need,
    random_images,
    same_images,
    within,
)
from dira_core.tensorfiles import write_tensors
from dira_core.transplant import match
from dira_core.weightfiles import joined, resnet_name

LIMIT = 1e-6
"""Largest difference, in float64: the same function leaves room for nothing else."""

LAST_SIDE = 3
"""Of the images compared, in strides of the deepest map; other sides are 2: they are not square."""


def _as_it_is(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Twin:
    """The same network in another library, still without weights.

    Attributes:
        network: As the library builds it.
        state: Our weights under the library's names.
        code: Python that builds `model`.
        note: What the weights do not hold.
        restores: Whether it returns restored images, (B, C, *S); else the pooled features (B, D).
        then: What makes its output that of dira.
    """

    network: nn.Module
    state: Mapping[str, Tensor]
    code: str
    note: str
    restores: bool = True
    then: Callable[[Tensor], Tensor] = _as_it_is


def write(original: Pretrained, there: Pretrained, twin: Twin, to: str, out: Path) -> Written:
    """Load the library's network strictly, compare it with the original, write its state dict.

    Raises:
        RecipeError: The weights are not those of that network.
        CheckpointError: It computes something else.
    """
    report = match(twin.state, twin.network)
    if not report.exact:
        raise RecipeError(
            f"{to}'s {type(twin.network).__name__} is another network than this one "
            f"({report.differences()}): use --to onnx"
        )
    twin.network.load_state_dict(dict(twin.state))
    found = within(_difference(original, there, twin), LIMIT, to)
    write_tensors(out, dict(twin.state), there.header.metadata())
    code = f"{twin.code}\nmodel.load_state_dict(load_file({json.dumps(out.name)}))\nmodel.eval()"
    return Written([out], found, f"from safetensors.torch import load_file\n{code}", twin.note)


def torchvision(there: Pretrained) -> Twin:
    """Build torchvision's ResNet without its classifier."""
    from torchvision.models import get_model

    name, channels = _resnet(there, "torchvision"), there.backbone.in_channels
    network: nn.Module = get_model(name, weights=None)
    network.fc = nn.Identity()
    code = [f"from torch import nn\nfrom torchvision.models import {name}\n", f"model = {name}()"]
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        code.append(f"model.conv1 = nn.Conv2d({channels}, 64, 7, stride=2, padding=3, bias=False)")
    code.append("model.fc = nn.Identity()")
    note = "the classifier fc is not part of the weights: fc = nn.Identity() gives the features"
    return Twin(network, there.backbone.state_dict(), "\n".join(code), note, restores=False)


def timm(there: Pretrained) -> Twin:
    """Build timm's ResNet without its classifier."""
    library, name = need("timm", "timm"), _resnet(there, "timm")
    channels = there.backbone.in_channels
    network = library.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    code = f'import timm\n\nmodel = timm.create_model("{name}", num_classes=0, in_chans={channels})'
    note = "the classifier fc is not part of the weights: num_classes=0 gives the features"
    return Twin(network, there.backbone.state_dict(), code, note, restores=False)


def smp(there: Pretrained) -> Twin:
    """Build segmentation_models_pytorch's U-Net on a ResNet."""
    library, name = need("segmentation_models_pytorch", "smp"), _resnet(there, "smp")
    if there.restorer is None:
        raise RecipeError("--to smp takes a U-Net, these weights have no restorer: use --to timm")
    decoder = there.restorer.state_dict()
    widths = [
        tensor.shape[0]
        for key, tensor in decoder.items()
        if key.startswith("blocks.") and key.endswith(".conv2.0.weight")
    ]
    if len(widths) != len(there.backbone.strides) or "head.weight" not in decoder:
        raise RecipeError(
            f"--to smp takes a decoder of {len(there.backbone.strides)} blocks and a head, this "
            "restorer is built otherwise: use --to onnx"
        )
    channels, classes = there.backbone.in_channels, len(decoder["head.weight"])
    network = library.Unet(
        name,
        encoder_weights=None,
        decoder_channels=widths,
        in_channels=channels,
        classes=classes,
        activation="sigmoid",
    )
    code = (
        "import segmentation_models_pytorch as smp\n\nmodel = smp.Unet(\n"
        f'    "{name}",\n    encoder_weights=None,\n    decoder_channels={widths},\n'
        f'    in_channels={channels},\n    classes={classes},\n    activation="sigmoid",\n)'
    )
    note = (
        'a state dict holds no sigmoid: activation="sigmoid" gives restored images, without it '
        "their logits"
    )
    return Twin(network, joined(there.backbone.state_dict(), decoder), code, note)


def _resnet(there: Pretrained, library: str) -> str:
    name = resnet_name(there.backbone.state_dict())
    if name is None:
        assert there.header.backbone is not None
        raise RecipeError(
            f"{library} takes a ResNet, these weights are of {there.header.backbone['name']!r}: "
            "use --to onnx"
        )
    return name


def _difference(original: Pretrained, there: Pretrained, twin: Twin) -> float:
    ours: nn.Module = Encoder(original.backbone)
    if original.restorer is not None:
        ours = Restoring(original.backbone, original.restorer)
    ours, theirs = (copy.deepcopy(module).double().eval() for module in (ours, twin.network))
    channels = original.backbone.in_channels, there.backbone.in_channels
    stride = max(original.backbone.strides)
    sides = [2 * stride] * (original.backbone.dims - 1)
    images = random_images((2, min(channels), *sides, LAST_SIDE * stride), torch.float64)
    fed = (same_images(images, channels[0]), same_images(images, channels[1]))
    return difference(ours, lambda image: (twin.then(theirs(image)),), fed)
