"""Weights a run starts from: torchvision's, another run's, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dira_core.errors import CheckpointError, RecipeError
from dira_core.files import digest
from dira_core.roles import Backbone, Restorer
from dira_core.transplant import Report, families, load_into, stem_of
from dira_core.weightfiles import Parts, read_weights

IMAGENET = "imagenet"

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels: torchvision's networks were fed (image - mean) / deviation."""


class Donor:
    """Give a backbone and a restorer their initial weights, and remember what fitted.

    Args:
        init: What the recipe says: `imagenet`, a run folder, or a file.
        network: What the recipe calls its backbone.

    Raises:
        CheckpointError: There are no such weights, or they cannot be trusted.
        RecipeError: torchvision has none for this backbone.
    """

    def __init__(self, init: str, network: str) -> None:
        self._init = init
        self._network = network
        self._parts = imagenet(network) if init == IMAGENET else read_weights(Path(init))
        self._reports: dict[str, Report] = {}

    def give_backbone(self, backbone: Backbone) -> None:
        """Load the encoder.

        Raises:
            RecipeError: It is not the recipe's; nothing is loaded then.
        """
        report = load_into(self._parts.backbone, backbone, stem_of(backbone))
        self._reports["backbone"] = report
        if not report.complete:
            held = self._parts.network
            other = held is not None and held != self._network
            way_out = f"use --backbone {held}, or other weights" if other else "use other weights"
            raise RecipeError(
                f"init {self._init} holds {held or 'another network'}, which does not fit backbone "
                f"{self._network!r} ({report.differences()}): {way_out}"
            )
        self._parts.backbone.clear()  # kept for a whole run otherwise

    def give_restorer(self, restorer: Restorer) -> None:
        """Load the decoder where there is one that fits; it may come from another method."""
        self._reports["restorer"] = load_into(self._parts.restorer, restorer)
        self._parts.restorer.clear()

    def line(self) -> str:
        """Say what was taken over, in one line."""
        report = self._reports["backbone"]
        said = [report.summary("backbone")]
        decoder = self._reports.get("restorer")
        if decoder is not None and decoder.complete:
            said.append(decoder.summary("restorer"))
        elif decoder is not None and decoder.matched:
            said.append(f"restorer starts afresh, it does not fit ({decoder.differences()})")
        elif decoder is not None:
            said.append("restorer starts afresh, no weights for it")
        if self._parts.left_out:
            said.append(f"left out {families(self._parts.left_out)}")
        return f"init {self._init}: {'; '.join(said)}"

    def record(self) -> dict[str, Any]:
        """Return every name, and the sha256 of the files, for the run folder."""
        return {
            "init": self._init,
            "sha256": dict(self._parts.digests),
            **{part: asdict(report) for part, report in self._reports.items()},
            "left_out": self._parts.left_out,
        }


def imagenet(network: str) -> Parts:
    """Read torchvision's first ImageNet weights of a ResNet, for images in [0, 1].

    They are taken from torch's hub folder, or downloaded to it, and compared with the digest in
    their file name.

    Raises:
        RecipeError: torchvision has none of that name.
        CheckpointError: There is no file and no network, or the file is another one.
    """
    url = imagenet_url(network)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    wanted = path.stem.rpartition("-")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), wanted, progress=False)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"weights of ImageNet need {url}, which cannot be had ({error}): put the file at "
                f"{path}"
            ) from error
    if not digest(path).startswith(wanted):
        raise CheckpointError(f"{path} is not what torchvision published: remove it, or mend it")
    parts = read_weights(path)
    backbone = {k: v for k, v in parts.backbone.items() if not k.startswith("fc.")}
    return Parts(unnormalised(backbone), left_out=("fc.weight", "fc.bias"), digests=parts.digests)


def imagenet_url(network: str) -> str:
    """Return where torchvision keeps the first ImageNet weights of a ResNet.

    Raises:
        RecipeError: It has none of that name.
    """
    from torchvision.models import get_model_weights, list_models

    if not network.startswith("resnet") or network not in list_models():
        raise RecipeError(
            f"init imagenet works with torchvision's ResNets, got backbone {network!r}: choose one "
            "of them, or give a file of weights"
        )
    return str(get_model_weights(network)["IMAGENET1K_V1"].url)


def unnormalised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold ImageNet's normalisation into a ResNet's first convolution and norm.

    W ((x - m) / s) = (W / s) x - b with b = sum(W m / s): the convolution gets W / s, and the norm
    after it a running mean larger by b. The same maps but for a border of three px, where padding
    is black now and was ImageNet's mean.
    """
    weight = state["conv1.weight"].double()
    mean, deviation = (weight.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    scaled = weight / deviation
    running = state["bn1.running_mean"]
    moved = running.double() + (scaled * mean).sum((1, 2, 3))
    return {
        **state,
        "conv1.weight": scaled.to(running.dtype),
        "bn1.running_mean": moved.to(running.dtype),
    }
