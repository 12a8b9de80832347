"""Which words there are, and where each of their instances lies."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dira_core import DataError, Source, write_atomic
from dira_transvw.places import carried_over, is_inside, is_worth_a_word

if TYPE_CHECKING:
    from dira_transvw.discovery import Plan, Survey

TRIES = 200
"""Places tried in one reference patient."""

REFERENCES = 20
"""Reference patients tried for one word."""

NARROWEST, WIDEST, USUAL = 50, 79, 64
"""Sides of the other cubes of an instance, within slices, where the first is 64 wide: uniform."""

JITTER = 10
"""Voxels that their middle is moved by at most, along height and width, where that is 64 wide."""

COLUMNS = ("file", "row", "split", "word", "patient", "volume", "digest", "rank", "resolution")
BOX = ("z1", "z2", "y1", "y2", "x1", "x2")


@dataclass(frozen=True)
class Line:
    """One cube: its volume (place in the survey), split, word, rank by likeness, and box."""

    volume: int
    name: str
    patient: int
    split: str
    word: int
    rank: int
    resolution: int
    box: np.ndarray
    row: int

    @property
    def file(self) -> str:
        """Where its volume's cubes are."""
        return f"cubes/{self.volume:05d}.safetensors"


def find_words(
    source: Source, survey: Survey, features: np.ndarray, plan: Plan, names: Sequence[str]
) -> list[Line]:
    """Choose places, and list every cube of every word.

    Raises:
        DataError: There is no room for so many words.
    """
    rows = [0] * len(survey.index)
    lines: list[Line] = []
    taken: list[np.ndarray] = []
    used: set[int] = set()
    for word in range(plan.words):
        reference, box = find_place(source, survey, plan, word, taken, used)
        for split, held, most in (
            ("train", False, plan.instances),
            ("held-out", True, plan.held_out_instances),
        ):
            alike = nearest(features, reference, survey.held_out == held)
            for rank, (volume, at) in enumerate(placed(survey, reference, box, alike, most)):
                for resolution, cube in enumerate(cubes_around(at, plan, word, volume, held)):
                    who = (volume, names[volume], int(survey.patient[volume]))
                    lines.append(Line(*who, split, word, rank, resolution, cube, rows[volume]))
                    rows[volume] += 1
    return lines


def find_place(
    source: Source,
    survey: Survey,
    plan: Plan,
    word: int,
    taken: list[np.ndarray],
    used: set[int],
) -> tuple[int, np.ndarray]:
    """Return the reference patient of a word, and its box there; note both.

    Patients serve once, and again when all have. A place counts as taken by where it lies in the
    body, so it is the same in all patients.
    """
    random = np.random.default_rng([plan.seed, 1, word])
    candidates = np.flatnonzero(~survey.held_out)
    typical = np.median(survey.body[:, :, 1] - survey.body[:, :, 0], axis=0)
    for _ in range(REFERENCES):
        fresh = [int(volume) for volume in candidates if int(volume) not in used]
        if not fresh:
            used.clear()
            fresh = candidates.tolist()
        reference = int(random.choice(fresh))
        used.add(reference)
        body = survey.body[reference]
        image = None
        for box in random_boxes(random, survey.shape[reference], plan):
            middle = (box.mean(1) - body[:, 0]) / (body[:, 1] - body[:, 0]) * typical
            if any(np.linalg.norm(middle - other) < plan.apart for other in taken):
                continue
            image = image or source.read(int(survey.index[reference]))
            if is_worth_a_word(image, box, plan.lung):
                taken.append(middle)
                return reference, box
    raise DataError(
        f"no place is left for word {word + 1} of {plan.words} of {plan.size} voxels that is "
        f"{plan.apart:g} voxels from all others: ask for fewer words, smaller cubes (--size), or "
        "less distance (--apart)" + (", or leave --lung out" if plan.lung else "")
    )


def random_boxes(
    random: np.random.Generator, shape: np.ndarray, plan: Plan
) -> Iterator[np.ndarray]:
    """Yield some boxes of the plan's size that keep away from the border, (3, 2) whole voxels.

    In a small volume the border shrinks to a third of the room there is.
    """
    size = np.array(plan.size)
    room = shape - size
    if (room < 0).any():
        return
    border = np.minimum(np.array(plan.border) * shape, room / 3).astype(int)
    for _ in range(TRIES):
        first = random.integers(border, room - border + 1)
        yield np.stack([first, first + size], 1).astype(np.float64)


def nearest(features: np.ndarray, reference: int, among: np.ndarray) -> np.ndarray:
    """Return volumes by the distance of their features to the reference's, nearest first."""
    far = np.linalg.norm(features - features[reference], axis=1)
    order = np.argsort(far, kind="stable")
    found: np.ndarray = order[among[order]]
    return found


def placed(
    survey: Survey, reference: int, box: np.ndarray, alike: np.ndarray, most: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield volumes and the reference's box carried over to them; those too short are passed by."""
    found = 0
    for volume in alike.tolist():
        at = carried_over(box, survey.body[reference], survey.body[volume])
        if found < most and is_inside(at, survey.shape[volume]):
            found += 1
            yield volume, at


def cubes_around(
    box: np.ndarray, plan: Plan, word: int, volume: int, held_out: bool
) -> Iterator[np.ndarray]:
    """Yield the boxes of an instance: as it is, then others about as wide around it.

    Of patients held out there is the first alone.
    """
    yield box
    random = np.random.default_rng([plan.seed, 2, word, volume])
    for _ in range(0 if held_out else plan.resolutions - 1):
        side = random.integers(NARROWEST, WIDEST + 1) / USUAL
        move = random.integers(-JITTER, JITTER + 1, 2) / USUAL
        other = box.copy()
        width = box[1:, 1] - box[1:, 0]
        middle = box[1:].mean(1) + move * width
        other[1:] = np.stack([middle - side * width / 2, middle + side * width / 2], 1)
        yield other


def write_table(path: Path, lines: Sequence[Line], digests: Mapping[int, int | None]) -> None:
    """Write one line a cube, with the number of its volume's files; it appears whole or not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *BOX))
    for line in lines:
        place = (f"{edge:.2f}" for edge in line.box.flatten())
        known = (line.file, line.row, line.split, line.word, line.patient, line.name)
        writer.writerow((*known, digests[line.volume], line.rank, line.resolution, *place))
    write_atomic(path, text.getvalue().encode())
