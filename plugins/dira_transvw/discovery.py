"""Self-discovery of visual words: alike patients, the same place in each, cubes on disk.

Source: Haghighi et al., "Transferable Visual Words", TMI 2021, arXiv:2102.10680, section
III-A, with the numbers of its public code. Every step is a function of the volumes and the seed, so
a second call goes on where the first one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool3d

from dira_core import DataError, RecipeError, Source, write_atomic
from dira_transvw import HEADER
from dira_transvw.arrays import opened, write_arrays
from dira_transvw.autoencoder import fit
from dira_transvw.places import body_box, cut, windowed
from dira_transvw.source import TABLE, WHITE
from dira_transvw.table import Line, find_words, write_table

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Shows a bar of so many steps, and yields what moves it on."""

PLAN = "plan.json"
SURVEY = "survey.safetensors"
FEATURES = "features.safetensors"
CUBES = "cubes"

CUTTING = frozenset(
    ["words", "instances", "held_out_instances", "resolutions", "size", "apart", "border", "lung"]
)
"""What of a plan says how cubes are cut, and nothing about what is learned before."""


@dataclass(frozen=True)
class Plan:
    """What words are wanted.

    Attributes:
        words: C, their number.
        instances: K, the most alike patients each is cut from.
        held_out_instances: The same, of patients held out.
        resolutions: Cubes of an instance: one as it lies, and others around it.
        size: Of a cube along (D, H, W) in voxels.
        apart: Least distance of two words in voxels.
        border: Least distance to the border, part of each axis.
        lung: Whether only cubes that are mostly lung are kept; the volumes are in HU.
        held_out: Part of the patients that are held out.
        grid: Of the thumbnails that features are made of.
        dim: Of a feature.
        epochs: Of the autoencoder, at most.
        seed: Of all.
        reading: Options by which the source reads volumes, such as their window.
    """

    words: int = 44
    instances: int = 200
    held_out_instances: int = 30
    resolutions: int = 3
    size: tuple[int, int, int] = (32, 64, 64)
    apart: float = 5.0
    border: tuple[float, float, float] = (0.1, 0.2, 0.2)
    lung: bool = False
    held_out: float = 0.2
    grid: tuple[int, int, int] = (32, 64, 64)
    dim: int = 512
    epochs: int = 200
    seed: int = 0
    reading: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse, before anything is read, what no volume could be cut by.

        Raises:
            RecipeError: A size, a border or a side of the grid is impossible.
        """
        if min(self.size) < 1:
            raise RecipeError(f"--size takes voxels, 1 and more: got {self.size}")
        if min(self.border) < 0 or max(self.border) >= 0.5:
            raise RecipeError(f"--border takes parts from 0 to below 0.5: got {self.border}")
        if min(self.grid) < 16 or any(side % 16 for side in self.grid):
            raise RecipeError(f"--grid takes multiples of 16: got {self.grid}")


@dataclass(frozen=True)
class Survey:
    """What is known of all volumes; those that cannot be read are left out.

    Attributes:
        index: Place of each in the source, (N,).
        patient: Number of its patient, (N,); -1 of nobody.
        held_out: Whether its patient is, (N,) bool.
        shape: (N, 3), of its voxels.
        body: Its body's box, (N, 3, 2).
        thumbnails: (N, *grid) float16.
        unreadable: Names and reasons.
    """

    index: np.ndarray
    patient: np.ndarray
    held_out: np.ndarray
    shape: np.ndarray
    body: np.ndarray
    thumbnails: np.ndarray
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What discovery came to.

    Attributes:
        volumes: That could be read, and were held out of them.
        unreadable: Names and reasons of the others.
        explained: How well the features describe volumes held out, see `autoencoder.Fit`.
        cubes: Lines of the table by split.
    """

    volumes: tuple[int, int]
    unreadable: tuple[str, ...]
    explained: float
    cubes: dict[str, int]


def discover(source: Source, out: Path, plan: Plan, bar: Bar) -> Found:
    """Find words in volumes and write them to a folder; go on where an earlier call stopped.

    Raises:
        RecipeError: The plan is impossible, or the folder cannot be made.
        DataError: The folder holds other words, or the volumes are too few, small or alike.
    """
    plan.check()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"folder {str(out)!r} cannot be made ({error.strerror}): give --out another"
        ) from error
    wanted, data = asdict(plan), source.fingerprint()
    read = {f"data.{key}": value for key, value in wanted.pop("reading").items()}
    agree(out, {**wanted, **read, "data": data})
    survey = surveyed(source, out / SURVEY, plan, bar)
    features, explained = described(survey, out / FEATURES, plan, bar)
    names = [source.name(int(index)) for index in survey.index]
    lines = find_words(source, survey, features, plan, names)
    by_volume: dict[int, list[Line]] = {}
    for line in lines:
        by_volume.setdefault(line.volume, []).append(line)
    with bar("cutting", len(by_volume)) as tick:
        for volume, some in sorted(by_volume.items()):
            write_cubes(source, int(survey.index[volume]), some, out, plan)
            tick(1)
    digests = {volume: source.digest(int(survey.index[volume])) for volume in by_volume}
    write_table(out / TABLE, lines, digests)
    held = int(survey.held_out.sum())
    header = {
        "source": "words",
        "version": 1,
        "words": plan.words,
        "size": plan.size,
        "explained": explained,
        "plan": asdict(plan),
        "data": data,
    }
    write_atomic(out / HEADER, json.dumps(header, indent=1).encode())
    counts = {split: sum(line.split == split for line in lines) for split in ("train", "held-out")}
    return Found((len(survey.index) - held, held), survey.unreadable, explained, counts)


def agree(out: Path, wanted: dict[str, Any]) -> None:
    """Say what a folder will hold, or refuse one that holds something else.

    Before anything is cut, how it is cut may change.

    Raises:
        DataError: It was begun otherwise, or holds files of another kind.
    """
    text = json.dumps(wanted, indent=1)
    plan = out / PLAN
    if not plan.exists():
        if any(out.iterdir()):
            raise DataError(f"folder {str(out)!r} is not empty: give --out another")
        write_atomic(plan, text.encode())
        return
    try:
        found = json.loads(plan.read_text("utf-8"))
    except ValueError:
        found = {}
    wanted = json.loads(text)
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing and CUTTING.issuperset(differing) and not (out / CUBES).exists():
        write_atomic(plan, text.encode())  # what was learned of the volumes holds all the same
    elif differing:
        raise DataError(
            f"folder {str(out)!r} was begun with other {', '.join(differing)}: give the same "
            "again, or --out another"
        )


def surveyed(source: Source, path: Path, plan: Plan, bar: Bar) -> Survey:
    """Look at every volume once, or return what an earlier call saw.

    Raises:
        DataError: Fewer than two volumes can be read, or they are no volumes.
    """
    if path.exists():
        with opened(path) as kept:
            arrays = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
            return Survey(**arrays, unreadable=tuple(json.loads(kept.metadata()["unreadable"])))
    seen, unreadable = [], []
    with bar("reading", len(source)) as tick:
        for index in range(len(source)):
            try:
                image = source.read(index)
            except DataError as error:
                unreadable.append(f"{source.name(index)}: {error}")
            else:
                if image.pixels.ndim != 4:
                    raise DataError("words are found in volumes, and these are flat images")
                volume = windowed(image)
                small = adaptive_avg_pool3d(volume[None], plan.grid)[0, 0]
                seen.append((index, volume.shape[1:], body_box(volume), small.half().numpy()))
            tick(1)
    if not seen:
        raise DataError("words need volumes, and none can be read: see `dira data inspect`")
    numbers, shape, body, thumbnails = (np.array(column) for column in zip(*seen, strict=True))
    everyone = np.full(len(source), -1) if source.patients is None else np.asarray(source.patients)
    patient = everyone[numbers]
    held = chosen(patient, plan)
    if (training := int((~held).sum())) < 2:
        raise DataError(
            f"words need two volumes and more to be found in: got {training} that can be read, and "
            f"{held.sum()} held out: give more, or a smaller --held-out"
        )
    known = Survey(numbers, patient, held, shape, body, thumbnails, tuple(unreadable))
    arrays = {name: array for name, array in vars(known).items() if name != "unreadable"}
    write_arrays(path, arrays, {"unreadable": json.dumps(unreadable)})
    return known


def chosen(patient: np.ndarray, plan: Plan) -> np.ndarray:
    """Hold out a part of the patients, (N,) bool; volumes of one (-1 is unknown) stay together."""
    alone = patient.copy()
    alone[patient < 0] = patient.max() + 1 + np.arange((patient < 0).sum())
    everyone = np.unique(alone)
    order = np.random.default_rng([plan.seed, 0]).permutation(everyone)
    return np.isin(alone, order[: round(plan.held_out * len(everyone))])


def described(survey: Survey, path: Path, plan: Plan, bar: Bar) -> tuple[np.ndarray, float]:
    """Return features of all volumes and how well they describe them, trained or kept."""
    if path.exists():
        with opened(path) as kept:
            return kept.get_tensor("features"), float(kept.metadata()["explained"])
    with bar("learning features", plan.epochs) as tick:
        found = fit(
            survey.thumbnails, survey.held_out, plan.dim, plan.epochs, plan.seed, lambda: tick(1)
        )
    write_arrays(path, {"features": found.features}, {"explained": repr(found.explained)})
    return found.features, found.explained


def write_cubes(source: Source, index: int, lines: list[Line], out: Path, plan: Plan) -> None:
    """Cut all cubes of one volume and write them to one file, unless it is there and whole.

    Intensities are those of the source's window, in 16 bits.
    """
    path = out / lines[0].file
    with suppress(DataError), opened(path):
        return
    volume = windowed(source.read(index))
    cubes = torch.stack([cut(volume, line.box, plan.size) for line in lines])
    path.parent.mkdir(exist_ok=True)
    write_arrays(path, {"cubes": (cubes * WHITE).round_().numpy().astype(np.uint16)})
