"""TransVW: visual words found in volumes by themselves, and a classifier that tells them apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dira_core import Command, Component, Options, Preset, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator, Source

DIRA_API = 1

PAPER = "arXiv:2102.10680"

HEADER = "dira-source.json"
"""The file that makes a folder one of words; a run takes such a folder by `--data`."""


class TransVWOptions(Options):
    """Self-classification of TransVW: which visual word is it?"""

    classes: int = Field(
        200, ge=2, description="words that can be told apart; the data may have fewer"
    )
    head: Literal["pytorch", "keras"] = Field(
        "pytorch",
        description="which public code's: a convolution to `hidden` channels, pooled, and a linear "
        "layer; or a convolution that keeps the channels, pooled, and two",
    )
    hidden: int = Field(1024, ge=1, description="width before the last layer")


class WordsOptions(Options):
    """A folder that `dira words discover` wrote."""

    path: Path = Field(description="the folder")
    split: Literal["train", "held-out", "all"] = Field(
        "train", description="instances of which patients: those words were made of, or the others"
    )


def build(options: TransVWOptions, backbone: Backbone) -> Discriminator:
    """Make a classifier of words for a backbone."""
    from dira_transvw.transvw import TransVW

    return TransVW(options, backbone)


def build_words(options: WordsOptions) -> Source:
    """Make the source of a folder of words."""
    from dira_transvw.source import WordsSource

    return WordsSource(options)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer self-classification, with the optimizer of the public code."""
    yield Component(
        "transvw",
        TransVWOptions,
        build,
        summary="which visual word a crop is an instance of",
        paper=PAPER,
        defaults={"optimizer": {"name": "adam", "lr": 1e-3, "lr_batch": None, "weight_decay": 0.0}},
    )


@hookimpl
def dira_sources() -> Iterable[Component]:
    """Offer the instances of visual words."""
    yield Component(
        "words",
        WordsOptions,
        build_words,
        summary="instances of visual words, from `dira words discover`",
        paper=PAPER,
        dims=(3,),
        accepts=lambda value: (Path(value) / HEADER).is_file(),
    )


@hookimpl
def dira_commands() -> Iterable[Command]:
    """Add `dira words`."""
    from dira_transvw.commands import app

    yield Command("words", app, "Find visual words in volumes, and look at them.")


@hookimpl
def dira_presets() -> Iterable[Preset]:
    """Offer DiRA on TransVW, and Models Genesis in 3-D."""
    from dira_transvw.presets import presets

    yield from presets()
