"""dira's discriminative steps against lightly's modules under Lightning's Trainer.

    python examples/benchmarks/peers.py --rounds 5

ResNet-18, 64 px, batch 64, no restorer; the same heads, the same images in memory. lightly runs as
in its own examples (float32, logger, progress bar, checkpoints), and tuned by hand to bf16 and
channels-last. Needs `pip install lightly`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torchvision.models import resnet18

from dira_core import gather, resolve
from dira_core.build import build_source, build_trio
from dira_core.game import Game

SIZE, WIDTH, KEYS = 64, 2048, 65_536


class Method(lightning.LightningModule):
    """A method as lightly's examples write it."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        backbone = resnet18()
        backbone.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        backbone.fc = nn.Identity()
        self.backbone = backbone
        self.channels_last = channels_last
        self.stamps: list[float] = []

    def views(self, batch: list[Tensor]) -> list[Tensor]:
        if self.channels_last:
            return [view.contiguous(memory_format=torch.channels_last) for view in batch]
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)

    def on_train_batch_end(self, *_: Any) -> None:
        self.stamps.append(time.perf_counter())


class SimSiam(Method):
    def __init__(self, channels_last: bool) -> None:
        super().__init__(channels_last)
        self.projection = heads.SimSiamProjectionHead(512, WIDTH, WIDTH)
        self.prediction = heads.SimSiamPredictionHead(WIDTH, 512, WIDTH)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        z0, z1 = (self.projection(self.backbone(v)) for v in self.views(batch))
        p0, p1 = self.prediction(z0), self.prediction(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


class MoCo(Method):
    def __init__(self, channels_last: bool) -> None:
        super().__init__(channels_last)
        self.projection = heads.MoCoProjectionHead(512, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_momentum = copy.deepcopy(self.projection)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_momentum)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(KEYS, 128))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, m=0.999)
        update_momentum(self.projection, self.projection_momentum, m=0.999)
        x0, x1 = self.views(batch)
        query = self.projection(self.backbone(x0))
        with torch.no_grad():
            key = self.projection_momentum(self.backbone_momentum(x1))
        return self.criterion(query, key)


class BarlowTwins(Method):
    def __init__(self, channels_last: bool) -> None:
        super().__init__(channels_last)
        self.projection = heads.BarlowTwinsProjectionHead(512, WIDTH, WIDTH)
        self.criterion = BarlowTwinsLoss()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        z0, z1 = (self.projection(self.backbone(v)) for v in self.views(batch))
        return self.criterion(z0, z1)


METHODS: dict[str, tuple[type[Method], list[str]]] = {
    "simsiam": (SimSiam, []),
    "mocov2": (MoCo, [f"discriminator.queue={KEYS}"]),
    "barlow": (
        BarlowTwins,
        [f"discriminator.dim={WIDTH}", "optimizer.name=sgd", "optimizer.lr=0.06"],
    ),
}


def peer(method: type[Method], tuned: bool, batch: int, count: int) -> list[float]:
    """Return the seconds of lightly's steps, the first ones left out."""
    images = torch.rand(2, batch, 1, SIZE, SIZE)
    loader = torch.utils.data.DataLoader([tuple(images)] * count, batch_size=None)
    module = method(channels_last=tuned)
    if tuned:
        module.to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=count,
            precision="bf16-mixed" if tuned else "32-true",
            default_root_dir=folder,
            accelerator="cpu",
        )
        trainer.fit(module, loader)
    return [b - a for a, b in zip(module.stamps[2:], module.stamps[3:], strict=False)]


def ours(name: str, assignments: list[str], batch: int, count: int) -> Callable[[], list[float]]:
    """Return what takes dira's steps: its own trainer and log, on crops in memory."""
    given = [
        f"discriminator.name={name}",
        "restorer=none",
        "adversary=none",
        "backbone=resnet18",
        f"views.size={SIZE}",
        "views.geometry=[]",
        "views.appearance=[]",
        "views.distort=[]",
        f"train.batch_size={batch}",
        f"data.n={batch * count * 20}",
        *assignments,
    ]
    recipe = resolve(gather(preset="fixed", assignments=given, data="phantom")).recipe
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    crops = game.first_crops()

    def steps() -> list[float]:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            game.trainer.train_step([crops])
            game.trainer.step += 1
            seconds.append(time.perf_counter() - started)
        return seconds[2:]

    return steps


def main() -> None:
    """Take turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12, help="of each arm in each round")
    given = parser.parse_args()
    size = given.batch, given.steps
    for name, (method, assignments) in METHODS.items():
        mine = ours(name, assignments, *size)
        taken: dict[str, list[float]] = {"dira": [], "lightly": [], "lightly tuned": []}
        for _ in range(given.rounds):
            taken["dira"].append(statistics.median(mine()))
            taken["lightly"].append(statistics.median(peer(method, False, *size)))
            taken["lightly tuned"].append(statistics.median(peer(method, True, *size)))
        for arm, seconds in taken.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, taken["dira"], strict=True))
            middle = statistics.median(seconds)
            speed = f"{1000 * middle:7.0f} ms {given.batch / middle:6.0f} images/s"
            print(f"{name:8} {arm:14}{speed}  {ratio:.2f} x dira's time")


if __name__ == "__main__":
    main()
