"""Weights as whole networks of MONAI: each part takes those of the one it was trained as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dira_core import Options, Pretrained, RecipeError, Twin
from dira_monai.library import Call, dynunet, swin, unet

Pairs = Sequence[tuple[nn.Module, nn.Module]]
"""Parts of a network of MONAI, and of dira, that are the same."""


class Whole(NamedTuple):
    """How a network of MONAI is made, and what its parts are."""

    call: Callable[..., Call]
    pairs: Callable[[Any, Any, Any], Pairs]


def twin(options: Options, weights: Pretrained) -> Twin:
    """Build the network whose encoder and decoder were trained, with their weights.

    Raises:
        RecipeError: They are not those of one network of MONAI.
    """
    backbone, restorer = weights.backbone, weights.restorer
    parts = (weights.header.backbone, weights.header.restorer)
    chosen = [str(part["name"]) for part in parts if part]
    if restorer is None or len({*chosen}) != 1 or chosen[0] not in NETWORKS:
        raise RecipeError(
            f"--to monai takes a backbone and a restorer of one network ({', '.join(NETWORKS)}), "
            f"these weights are of {' and '.join(chosen)}: use --to onnx"
        )
    call, pairs = NETWORKS[chosen[0]]
    *_, last_bias = restorer.state_dict().values()
    made = call(backbone.options, backbone.dims, backbone.in_channels, len(last_bias))
    network: nn.Module = made.network()
    try:
        for theirs, ours in pairs(network, backbone, restorer):
            theirs.load_state_dict(ours.state_dict())
    except RuntimeError as error:
        raise RecipeError(
            "the decoder has other norms or units than its encoder, which no network of MONAI has: "
            "use --to onnx"
        ) from error
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    note = (
        "a state dict holds no sigmoid: torch.sigmoid(model(images)) gives restored images, whose "
        "sides are multiples of the deepest stride"
    )
    return Twin(network, state, made.code(), note, then=torch.sigmoid)


def unet_pairs(network: Any, encoder: Any, decoder: Any) -> Pairs:
    """Return the levels of MONAI's `UNet`, which are nested."""
    downs, ups, below = [], [], network.model
    for _ in encoder.levels[1:]:
        downs.append(below[0])
        ups.append(below[2])
        below = below[1].submodule
    down = zip([*downs, below], encoder.levels, strict=True)
    return [*down, *zip(reversed(ups), decoder.ups[1:], strict=True)]


def dynunet_pairs(network: Any, encoder: Any, decoder: Any) -> Pairs:
    """Return the blocks of MONAI's `DynUNet`."""
    downs = [network.input_block, *network.downsamples, network.bottleneck]
    ups = zip(network.upsamples, decoder.ups, strict=True)
    return [
        *zip(downs, encoder.levels, strict=True),
        *((theirs, ours.block) for theirs, ours in ups),
        (network.output_block.conv.conv, decoder.head),
    ]


def swin_pairs(network: Any, encoder: Any, decoder: Any) -> Pairs:
    """Return the blocks of MONAI's `SwinUNETR`."""
    blocks = [network.encoder1, network.encoder2, network.encoder3, network.encoder4]
    ups = [getattr(network, f"decoder{level}") for level in (5, 4, 3, 2, 1)]
    return [
        (network.swinViT, encoder.transformer),
        (network.encoder10, encoder.deepest),
        *zip(blocks, encoder.blocks, strict=True),
        *((theirs, ours.block) for theirs, ours in zip(ups, decoder.ups, strict=True)),
        (network.out.conv.conv, decoder.head),
    ]


NETWORKS: Mapping[str, Whole] = {
    "monai-unet": Whole(unet, unet_pairs),
    "monai-dynunet": Whole(dynunet, dynunet_pairs),
    "monai-swin": Whole(swin, swin_pairs),
}
