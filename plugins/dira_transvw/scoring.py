"""How well a run tells the words of cubes it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dira_core import RecipeError, build_source, load_run, whole_images
from dira_transvw import WordsOptions
from dira_transvw.source import WordsSource
from dira_transvw.transvw import TransVW

CUBES = 32
"""Cubes that go through the network at once."""


@dataclass(frozen=True)
class Score:
    """What a classifier makes of cubes, undistorted.

    Attributes:
        words: Number of the word of each cube, (N,).
        told: The word the classifier tells, (N,).
        volumes: What they were cut from, N names.
    """

    words: np.ndarray
    told: np.ndarray
    volumes: Sequence[str]

    @property
    def accuracy(self) -> float:
        """Part of the cubes whose word is told."""
        return float((self.words == self.told).mean())

    def by_word(self) -> dict[int, float]:
        """Return the accuracy of each word."""
        right = self.words == self.told
        return {int(word): float(right[self.words == word].mean()) for word in set(self.words)}


def score(run: Path, options: WordsOptions) -> Score:
    """Let the classifier of a run tell the words of cubes.

    Args:
        run: Folder of a run with the Discriminator `transvw`.
        options: The folder of words, and which instances.

    Raises:
        RecipeError: The run has another Discriminator, or learned other words.
        DiraError: It is no run, or there are no such cubes.
    """
    source = WordsSource(options)
    recipe, trio = load_run(run)
    if not isinstance(trio.discriminator, TransVW):
        raise RecipeError(f"{run} learned no words: give a run with --disc transvw")
    learned = build_source(recipe)
    if isinstance(learned, WordsSource) and learned.header != source.header:
        raise RecipeError(
            f"{run} learned other words than those of --data: give {str(learned.folder)!r}"
        )
    words = source.words
    assert words is not None
    told = []
    for first in range(0, len(source), CUBES):
        some = range(first, min(first + CUBES, len(source)))
        images = whole_images(source, some, recipe.views.size, recipe.views.channels)
        with torch.no_grad():
            deepest = trio.backbone(images)[-1]
            told.append(trio.discriminator.scores(deepest).argmax(1))
    return Score(words, torch.cat(told).numpy(), source.volumes)
