"""Presets of DiRA (Haghighi et al., CVPR 2022): as written, as published, as we would run it.

"paper" in a comment is the paper's text, "public code" is what the authors' published code does,
"ours" is our choice where these two differ, are silent, or are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dira_core import Preset, hookimpl

DIRA_API = 1

FLIP = {"name": "flip", "axis": -1, "p": 0.5}  # public code; the paper names it without p

APPEARANCE = [
    # public code: colour jitter with p 0.8; on grey images only these two parts of it act
    {"name": "intensity-jitter", "brightness": 0.4, "contrast": 0.4, "p": 0.8},
    # public code: sigma 0.1 to 2 px on crops of 224 px
    {"name": "gaussian-blur", "low": 0.1 / 224, "high": 2.0 / 224, "p": 0.5},
]

TRIO = {
    "backbone": "resnet50",  # paper
    "discriminator": "simsiam",  # paper: one of three
    "restorer": {"name": "unet", "loss": "mse"},  # paper
    "adversary": {"name": "patchgan", "loss": "lsgan"},  # public code
    "weights": {"dis": 1.0, "res": 10.0, "adv": 0.001},  # paper and public code
}

CRITIC = {
    "name": "adam",  # paper: Adam, 2e-4, (0.5, 0.999)
    "lr": 2e-4,
    "lr_batch": None,  # public code: not scaled
    "betas": [0.5, 0.999],
    "weight_decay": 0.0,  # public code
    "schedule": "constant",  # public code
}


def distort(*, disjoint: bool) -> list[Mapping[str, Any]]:
    """Return the distortion of the public code: one of three, or with 35 % none."""
    swap = {"name": "patch-swap", "disjoint": disjoint}
    of = [{"name": "inner-cutout"}, {"name": "outer-cutout"}, swap]
    return [{"name": "one-of", "of": of, "weights": [0.30, 0.05, 0.30]}]


def views(size: int, *, aligned: bool, disjoint: bool) -> Mapping[str, Any]:
    """Return how a view is made.

    Args:
        size: Side of a crop in px.
        aligned: Whether the target is flipped with the input; else the flip must be undone.
        disjoint: Whether swapped patches never overlap.
    """
    return {
        "size": size,
        "channels": 1,  # public code replicates grey to RGB, and restores one channel
        "scale": [0.2, 1.0],  # public code
        "ratio": [3 / 4, 4 / 3],  # public code
        "geometry": [FLIP] if aligned else [],
        "appearance": APPEARANCE if aligned else [*APPEARANCE, FLIP],
        "distort": distort(disjoint=disjoint),
        "discriminator_sees": "image",  # public code: the distorted view, in both branches
    }


FIXED = {
    **TRIO,  # the optimizers are those of the discriminator's and the adversary's papers
    "views": views(224, aligned=True, disjoint=True),  # ours: flip and swap mended
    "train": {"batch_size": 64},  # ours: fits one GPU; the rate scales with it
}

PAPER = {
    **TRIO,
    "adversary": {"name": "patchgan", "loss": "bce"},  # paper, eq. 3: a log loss
    "views": views(224, aligned=False, disjoint=True),  # paper: the flip is part of T(.)
    "critic_optimizer": CRITIC,
    "train": {"batch_size": 256},  # paper
}

RELEASED = {
    **TRIO,
    "views": views(224, aligned=False, disjoint=False),  # public code: its overlap test is void
    "optimizer": {
        "name": "sgd",  # public code: this line and all below
        "lr": 0.03,
        "lr_batch": None,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
        "clip": None,
    },
    "critic_optimizer": CRITIC,
    "train": {"batch_size": 256, "epochs": 1200, "precision": "fp32"},  # public code, first stage
}

TINY = {
    **TRIO,
    "backbone": "resnet18",  # ours, as all of this preset: a first look on a laptop
    "data": {"name": "phantom", "n": 1024},
    "discriminator": {"name": "simsiam", "dim": 512, "hidden": 128},
    "views": {**views(64, aligned=True, disjoint=True), "scale": [0.4, 1.0]},
    "optimizer": {"lr": 0.1, "lr_batch": None},  # 128 steps are too few for a scaled rate
    "train": {"batch_size": 32, "epochs": 4},
    "checkpoint": {"every_steps": 50},
    "log": {"every": 4},
    "health": {"every": 16},
}


@hookimpl
def dira_presets() -> Iterable[Preset]:
    """Offer the four presets."""
    yield Preset("fixed", FIXED, "the default: flip aligned, true swaps, rate scaled by batch")
    yield Preset("paper", PAPER, "what the paper's text says: log loss, each method's optimizer")
    yield Preset("released", RELEASED, "what the public code does, quirks included, in one stage")
    yield Preset("tiny", TINY, "built-in data, a minute on a laptop's processor")
