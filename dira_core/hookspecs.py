"""Every hook of dira. A plugin implements those it needs, marked with `@dira_core.hookimpl`.

Hooks named after a plural noun return components; a component's `build` is called as the hook says.
Hooks named after an event observe. No logic lives here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from dira_core.components import Command, Component, Preset

if TYPE_CHECKING:
    from dira_core.types import Progress

hookspec = pluggy.HookspecMarker("dira")
hookimpl = pluggy.HookimplMarker("dira")


@hookspec
def dira_discriminators() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Discriminators; `build(options, backbone) -> dira_core.Discriminator`."""


@hookspec
def dira_restorers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Restorers; `build(options, backbone) -> dira_core.Restorer`."""


@hookspec
def dira_adversaries() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Adversaries; `build(options, channels, dims) -> dira_core.Adversary`.

    `channels` are those of one image, `dims` its number of spatial axes.
    """


@hookspec
def dira_distortions() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Distortions; `build(options) -> dira_core.Distortion`."""


@hookspec
def dira_backbones() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Backbones; `build(options, channels, dims) -> dira_core.Backbone`."""


@hookspec
def dira_sources() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Sources, where images come from; `build(options) -> dira_core.Source`."""


@hookspec
def dira_targets() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Targets, labelled tasks; `build(options, window) -> dira_core.Labels` or `Masks`.

    `window` is how the weights' images became numbers in [0, 1], see `dira_core.Image`. `defaults`
    is a piece of a transfer's plan: how the task is fine-tuned where it was published.
    """


@hookspec
def dira_trackers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return Trackers, where metrics go; `build(options, folder) -> dira_core.Tracker`."""


@hookspec
def dira_exports() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return libraries that weights go to; `build(options, weights) -> dira_core.Twin`.

    `weights` are a `dira_core.Pretrained`. There are no options. What the library has no network
    for is a `RecipeError`.
    """


@hookspec
def dira_presets() -> Iterable[Preset]:  # type: ignore[empty-body]
    """Return presets: named pieces of a recipe."""


@hookspec
def dira_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Return verbs to add to the `dira` command."""


@hookspec
def dira_run_started(folder: Path, progress: Progress) -> None:
    """Observe a run that is about to take its first step, fresh or resumed."""


@hookspec
def dira_step_ended(progress: Progress, metrics: Mapping[str, float]) -> None:
    """Observe a step whose metrics were logged; `metrics` are those of metrics.jsonl."""


@hookspec
def dira_epoch_ended(progress: Progress) -> None:
    """Observe the end of an epoch."""


@hookspec
def dira_checkpoint_saved(path: Path, progress: Progress) -> None:
    """Observe a checkpoint that is complete on disk.

    Called between two steps; `progress` is that of the checkpoint, the run may be further.
    """


@hookspec
def dira_run_ended(folder: Path, status: str) -> None:
    """Observe the end of a run: done, preempted, failed or diverged, as in status.json."""
