"""What reading images and making views costs, stage by stage, against the public code's way."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from dira_core.bench.public import SCALE, PublicPipeline
from dira_core.bench.timing import Arm, Cores, Timing, alternate, ratio
from dira_core.data.caching import build
from dira_core.data.cutting import cut
from dira_core.data.dataset import CropDataset, Request
from dira_core.data.folder import FolderSource
from dira_core.data.images import read_image
from dira_core.data.phantom import draw
from dira_core.data.pyramid import crop_level
from dira_core.draws import Draws
from dira_core.layering import PRESET_WITH_DATA, gather
from dira_core.memory import keep_freed
from dira_core.operations import change_images, plan
from dira_core.resolving import resolve
from dira_core.roles import Source
from dira_core.settings import Settings
from dira_core.source_options import FolderOptions
from dira_core.types import in_unit
from dira_core.view_options import sides_of
from dira_core.views import Operations, ViewMaker

IMAGES = 32
"""Images on disk: decoded they are larger than the caches of a processor."""

OF_PUBLIC = 4
"""Images that the public pipeline, which is slow, makes in a round."""

BATCHES = 3
"""Of a round from a cache: it lasts about as long as the public pipeline's."""

VIEWS = 2


def data(side: int, size: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Make view 1, view 2 and the target of made-up images, in one process and one thread.

    Args:
        side: Of the images in px.
        size: Of the views in px.
        batch_size: Images of a batch.
        rounds: Times each is measured.

    Returns:
        Microseconds of a processor an image (least, median, most), of each pipeline and of its
        stages; images a second; how many times faster than the public pipeline; how close crops
        are to Pillow's in dB; how busy others kept the machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return measure(Path(folder), side, size, batch_size, rounds)
    finally:
        torch.set_num_threads(threads)


def measure(folder: Path, side: int, size: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Measure the pipelines on images that are written to a folder."""
    keep_freed(torch.device("cpu"))
    write_images(folder / "images", side)
    files = FolderSource(FolderOptions(path=folder / "images"))
    cache = build(files, folder / "cache", {})
    values = [f"views.size={size}", f"views.scale={list(SCALE)}", "train.device=cpu"]
    settings = resolve(gather(preset=PRESET_WITH_DATA, data="phantom", assignments=values)).recipe
    few = max(1, batch_size // 8)
    public, ours = Public(files, size), Ours(cache, settings, batch_size)
    arms = {
        "public code": (public.step, OF_PUBLIC),
        "dira, files": (Ours(files, settings, few).step, few),
        "dira, cache": (ours.steps, BATCHES * batch_size),
    }
    cores = Cores()
    pipelines = timed(arms, rounds)
    stages = {
        "public code": timed({k: (v, OF_PUBLIC) for k, v in public.stages().items()}, rounds),
        "dira, cache": timed({k: (v, batch_size) for k, v in ours.stages().items()}, rounds),
    }
    return {
        "us": {name: spread(timing) for name, timing in pipelines.items()},
        "images/s": {name: 1 / timing.median for name, timing in pipelines.items()},
        "times public code": {
            name: ratio(pipelines, "public code", name) for name in list(pipelines)[1:]
        },
        "stages us": {
            name: {stage: spread(timing) for stage, timing in each.items()}
            for name, each in stages.items()
        },
        "dB to Pillow": closeness(ours),
        "cores used": cores.used(),
        "rounds": rounds,
    }


def write_images(folder: Path, side: int) -> None:
    """Write radiographs as PNG, drawn at half their size: finer grain would not compress."""
    folder.mkdir()
    for number in range(IMAGES):
        image = Pillow.fromarray(draw(number, side // 2).pixels[0])
        enlarged = image.resize((side, side), Pillow.Resampling.BICUBIC)
        enlarged.save(folder / f"{number:02}.png")


def timed(arms: Mapping[str, tuple[Arm, int]], rounds: int) -> dict[str, Timing]:
    """Return processor seconds an image of arms that each make a number of images."""
    timings = alternate({name: arm for name, (arm, _) in arms.items()}, rounds, time.process_time)
    return {
        name: Timing(tuple(seconds / images for seconds in timings[name].seconds))
        for name, (_, images) in arms.items()
    }


def spread(timing: Timing) -> dict[str, float]:
    """Return the least, the middle and the most of some times, in microseconds."""
    low, high = min(timing.seconds), max(timing.seconds)
    return {"min": 1e6 * low, "median": 1e6 * timing.median, "max": 1e6 * high}


class Public:
    """The public code's pipeline on files, and its stages on images that are ready for them."""

    def __init__(self, files: FolderSource, size: int) -> None:
        self._pipeline = PublicPipeline(size)
        self._paths = itertools.cycle(files.path(index) for index in range(len(files)))

    def step(self) -> None:
        """Make some images from their files."""
        for _ in range(OF_PUBLIC):
            self._pipeline(next(self._paths))

    def stages(self) -> dict[str, Arm]:
        """Return what makes each stage of some images."""
        make = self._pipeline
        paths = [next(self._paths) for _ in range(OF_PUBLIC)]
        images = [make.decode(path) for path in paths for _ in range(VIEWS)]
        crops = [make.crop(image) for image in images]
        return {
            "decode": lambda: [make.decode(path) for path in paths],
            "crop and resize": lambda: [make.crop(image) for image in images],
            "geometry and appearance": lambda: [make.appearance(crop) for crop in crops],
            "distort": lambda: [make.distort(crop) for crop in crops],
            "to tensors": lambda: (
                [make.to_tensor(crop) for crop in crops]
                + [make.to_tensor(crop.convert("L")) for crop in crops[::VIEWS]]
            ),
        }


class Ours:
    """dira's pipeline on a source, and its stages on images that are ready for them.

    Args:
        source: Where images come from; taken in turn.
        settings: How views are made.
        batch_size: Images of a batch.
    """

    def __init__(self, source: Source, settings: Settings, batch_size: int) -> None:
        self.source = source
        self.dataset = CropDataset(source, settings, VIEWS)
        self.height, self.width = self.size = sides_of(settings.views.size, 2)
        self.indices = [position % len(source) for position in range(batch_size)]
        self._views = ViewMaker(settings, torch.device("cpu"), VIEWS)
        self._settings = settings
        self._epochs = itertools.count()

    def step(self) -> None:
        """Make the views of a batch, and the target of the first."""
        epoch = next(self._epochs)
        batch = self._views(self.dataset.crops(Request(self.indices, epoch)), epoch, 0)
        _ = batch.views[0].crop

    def steps(self) -> None:
        """Make the views of some batches."""
        for _ in range(BATCHES):
            self.step()

    def boxes(self) -> Tensor:
        """Return where the crops of a batch lie, (B, V, D, 2)."""
        images = [read_image(self.source, index) for index in self.indices]
        return self.dataset.boxes(torch.tensor(self.indices), images, Request(self.indices, 0))

    def stages(self) -> dict[str, Arm]:
        """Return what makes each stage of a batch."""
        images, boxes = [read_image(self.source, index) for index in self.indices], self.boxes()
        crops = self.dataset.crops(Request(self.indices, 0))
        made = [view for view in crops.pixels if isinstance(view, Tensor)]
        pixels = [view.clone() for view in made]
        operations = Operations(self._settings.views, torch.device("cpu"))
        draws = Draws(crops.index, seed=0, path="views").of_views(range(VIEWS))
        images_of_views = [image for view in made for image in view.numpy()]
        changed = np.empty((len(images_of_views), *made[0].shape[1:]), np.float32)

        def crop() -> None:
            places = zip(*(view.unbind() for view in pixels), strict=True)
            for image, edges, of_image in zip(images, boxes.tolist(), places, strict=True):
                for box, place in zip(edges, of_image, strict=True):
                    cut(image, box, place)

        def decide() -> list[Any]:
            n, shape = len(images_of_views), made[0].shape[1:]
            return [plan(group, n, shape) for group in operations.drawn(draws)]

        def group(number: int) -> None:
            change_images(images_of_views, decided[number], changed)

        decided = decide()
        return {
            "read": lambda: [read_image(self.source, index) for index in self.indices],
            "place crops": self.boxes,
            "crop and resize": crop,
            "transfer from a worker": lambda: ForkingPickler.loads(ForkingPickler.dumps(crops)),
            "decide": decide,
            "appearance": lambda: group(1),
            "distort": lambda: group(2),
            "target": lambda: in_unit(made[0]),
        }


def closeness(ours: Ours) -> float:
    """Return how close crops of a cache are to Pillow's antialiased ones of the same box, in dB."""
    errors = []
    for index, boxes in zip(ours.indices, ours.boxes().tolist(), strict=True):
        image = read_image(ours.source, index)
        for box in boxes:
            (top, bottom), (left, right) = map(sorted, box)
            whole = Pillow.fromarray(image.pixels[0]).crop((left, top, right, bottom))
            theirs = np.asarray(whole.resize((ours.width, ours.height), Pillow.Resampling.BILINEAR))
            found = crop_level(image, [(top, bottom), (left, right)], ours.size)[0]
            errors.append(float((np.subtract(found, theirs, dtype=np.float64) ** 2).mean()))
    return 10 * math.log10(255**2 / (sum(errors) / len(errors)))
