"""dira's MoCo-v2 trio against a straightforward float32 rendering of the public DiRA code's step.

    python examples/benchmarks/public_code.py --backbone resnet50 --size 224 --batch 16 --rounds 5

The rendering follows what that code is known to do (docs/presets.md): float32, contiguous memory,
images repeated to three channels, a key network that is a whole U-Net and whose decoder's result is
thrown away, a moving average in a Python loop, a copy of the queue in every step, a critic that is
not frozen in the generator's step and scores the restored images a second time for its own.
Peak memory is that of a process of its own for each arm.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dira_core import Batch, gather, resolve
from dira_core.bench.timing import alternate
from dira_core.build import build_source, build_trio
from dira_core.game import Game

KEYS, DIM, TEMPERATURE, MOMENTUM = 65_536, 128, 0.2, 0.999


def recipe_of(backbone: str, size: int, batch: int) -> list[str]:
    """Return the assignments both arms share."""
    return [
        f"backbone={backbone}",
        f"views.size={size}",
        f"train.batch_size={batch}",
        f"data.n={4 * batch}",
        f"discriminator.queue={KEYS}",
        "log.every=100000",
        "health.every=100000",
    ]


class PublicStep:
    """The step of the public code, as plainly as it is there."""

    def __init__(self, assignments: list[str], batch: Batch) -> None:
        trio = build_trio(
            resolve(
                gather(
                    preset="fixed/mocov2",
                    assignments=[*assignments, "views.channels=3"],
                    data="phantom",
                )
            ).recipe
        )
        width = trio.backbone.channels[-1]
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, DIM))
        assert trio.restorer is not None
        self.query = nn.ModuleList([trio.backbone, trio.restorer, head])
        # the public decoder restores one channel
        trio.restorer.head = nn.Conv2d(trio.restorer.head.in_channels, 1, 3, padding=1)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.critic = build_trio(
            resolve(gather(preset="fixed/mocov2", assignments=assignments, data="phantom")).recipe
        ).adversary
        assert self.critic is not None
        self.queue = F.normalize(torch.randn(DIM, KEYS), dim=0)
        self.cursor = 0
        self.images = [v.image.expand(-1, 3, -1, -1).contiguous() for v in batch.views]
        self.target = batch.views[0].crop.contiguous()
        self.optimizer = torch.optim.SGD(self.query.parameters(), 0.03, 0.9, weight_decay=1e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), 2e-4, (0.5, 0.999))

    @staticmethod
    def run(network: nn.ModuleList, images: Tensor) -> tuple[Tensor, Tensor]:
        backbone, restorer, head = network
        pyramid = backbone(images)
        embedding = F.normalize(head(pyramid[-1].mean((2, 3))), dim=1)
        return embedding, restorer(pyramid)

    def step(self) -> None:
        """Step the generator, then the critic."""
        query, restored = self.run(self.query, self.images[0])
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.data = slow.data * MOMENTUM + fast.data * (1 - MOMENTUM)
            key, _ = self.run(self.key, self.images[1])
        positive = torch.einsum("nc,nc->n", query, key)[:, None]
        negative = torch.einsum("nc,ck->nk", query, self.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        labels = torch.zeros(len(logits), dtype=torch.long)
        contrast = F.cross_entropy(logits, labels)
        self.queue[:, self.cursor : self.cursor + len(key)] = key.T
        self.cursor = (self.cursor + len(key)) % KEYS
        judged = self.critic(restored)
        adversarial = F.mse_loss(judged, torch.ones_like(judged))
        loss = contrast + 10 * F.mse_loss(restored, self.target) + 0.001 * adversarial
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.critic_optimizer.zero_grad()
        real, fake = self.critic(self.target), self.critic(restored.detach())
        ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
        (0.5 * (F.mse_loss(real, ones) + F.mse_loss(fake, zeros))).backward()
        self.critic_optimizer.step()


def arms(assignments: list[str], which: str) -> dict[str, Callable[[], object]]:
    """Return the steps to be timed."""
    recipe = resolve(gather(preset="fixed/mocov2", assignments=assignments, data="phantom")).recipe
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    game.trainer.step = 1  # every so often, and at step 0, a step also measures gradients
    crops = game.first_crops()
    steps: dict[str, Callable[[], object]] = {}
    if which in ("public", "both"):
        public = PublicStep(assignments, game.views(crops, 0, 0))
        steps["public"] = public.step
    if which in ("dira", "both"):
        steps["dira"] = lambda: game.trainer.train_step([crops])
    return steps


def peak(assignments: list[str], which: str, answer: multiprocessing.SimpleQueue[float]) -> None:
    """Take two steps and report the peak memory of this process in MiB."""
    for step in arms(assignments, which).values():
        step()
        step()
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Time both arms in turns, and measure each one's memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    assignments = recipe_of(given.backbone, given.size, given.batch)
    spawn = multiprocessing.get_context("spawn")
    memory = {}
    for which in ("public", "dira"):
        answer = spawn.SimpleQueue()
        process = spawn.Process(target=peak, args=(assignments, which, answer))
        process.start()
        memory[which] = answer.get()
        process.join()
    steps = arms(assignments, "both")
    timings = alternate(steps, given.rounds)
    pairs = zip(timings["public"].seconds, timings["dira"].seconds, strict=True)
    ratios = [public / dira for public, dira in pairs]
    for name in steps:
        print(f"{name:8}{1000 * timings[name].median:8.0f} ms  {memory[name]:6.0f} MiB")
    spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"public / dira: {statistics.median(ratios):.2f} x time {spread}")
    print(f"dira / public: {memory['dira'] / memory['public']:.2f} x memory")


if __name__ == "__main__":
    main()
