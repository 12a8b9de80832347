"""Encoder and U-Net as ONNX graphs for any batch and size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from dira_core.files import replacing

LIMIT = 1e-5
"""Largest difference: another order of sums in float32, layer after layer."""

EXPORTED, COMPARED = (2, 64, 96, 64), (3, 96, 32, 96)
"""Batch and sides, of which 2-D networks take the first two, at export and when comparing."""

AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}


def write(original: Pretrained, there: Pretrained, to: str, out: Path) -> Written:
    """Write the encoder to `out`, and the U-Net beside it where there is a restorer.

    Raises:
        RecipeError: onnx, onnxscript or onnxruntime is not installed.
        CheckpointError: The graph computes something else.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        need(library, to)
    maps = [f"map{level}" for level in range(1, len(there.backbone.strides) + 1)]
    jobs: list[tuple[Path, nn.Module, nn.Module, list[str]]] = [
        (out, Encoder(original.backbone), Encoder(there.backbone), ["features", *maps])
    ]
    if original.restorer is not None and there.restorer is not None:
        before = Restoring(original.backbone, original.restorer)
        after = Restoring(there.backbone, there.restorer)
        jobs.append((out.with_stem(f"{out.stem}-restorer"), before, after, ["restored"]))
    found = 0.0
    for path, ours, theirs, outputs in jobs:
        with replacing(path) as draft:
            _export(theirs.eval(), there, draft, outputs)
            off = _difference(ours.eval(), original, draft, there.backbone.in_channels)
            found = max(found, within(off, LIMIT, "onnxruntime"))
    shape = (1, there.backbone.in_channels, *EXPORTED[1 : 1 + there.backbone.dims])
    code = (
        "import numpy\nimport onnxruntime\n\n"
        f"session = onnxruntime.InferenceSession({json.dumps(out.name)})\n"
        f"image = numpy.zeros({shape}, numpy.float32)  # yours: any batch and size\n"
        'features, *maps = session.run(None, {"image": image})'
    )
    note = "outputs: features (batch, channels) are the deepest map averaged over space"
    return Written([path for path, *_ in jobs], found, code, note)


def _export(network: nn.Module, there: Pretrained, path: Path, outputs: Sequence[str]) -> None:
    dims = there.backbone.dims
    shape = (EXPORTED[0], there.backbone.in_channels, *EXPORTED[1 : 1 + dims])
    sizes: dict[int, Any] = {0: "batch", **dict(enumerate(AXES[dims], 2))}
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (random_images(shape, torch.float32),),
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(there.header.metadata())
    program.save(str(path), external_data=False)


def _difference(before: nn.Module, original: Pretrained, graph: Path, channels: int) -> float:
    session = need("onnxruntime", "onnx").InferenceSession(
        str(graph), providers=["CPUExecutionProvider"]
    )

    def after(images: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {"image": images.contiguous().numpy()})
        return tuple(torch.from_numpy(output) for output in found)

    own = original.backbone.in_channels
    batch, *sides = COMPARED[: 1 + original.backbone.dims]
    images = random_images((batch, min(own, channels), *sides), torch.float32)
    return difference(before, after, (same_images(images, own), same_images(images, channels)))
