"""Presets of DiRA on TransVW: as written, as published, as we would run it. No torch here.

"paper" in a comment is DiRA's text, "transvw" the public code of TransVW (its Keras or PyTorch
version), "stepwise" that of Stepwise Pretraining, "genesis" that of Models Genesis, "semantic" the
text of Semantic Genesis; "ours" is our choice where these differ, are silent, or are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dira_core import Preset

SIZE = [32, 64, 64]  # all of them: 64 x 64 x 32 voxels

ELASTIC = {"name": "elastic"}  # transvw: alpha 991, sigma 8 voxels, within slices
BEZIER = {"name": "bezier", "inverted": 0.5}  # transvw


def some(windows: int) -> Mapping[str, Any]:
    """Return local shuffling of so many windows, up to 6 x 6 x 3 voxels (transvw)."""
    return {"name": "pixel-shuffle", "windows": windows, "largest": 10}


# transvw, PyTorch: one block, a sixth to a third of each axis, filled with noise
INPAINT = {"name": "noise-inpaint", "blocks": 1, "side": [6, 3]}

# transvw, PyTorch: what is kept is 28 to 37 voxels high and wide, 14 to 19 deep
OUTPAINT = {
    "name": "noise-outpaint",
    "blocks": 1,
    "sides": [[14 / 32, 19 / 32], [28 / 64, 37 / 64], [28 / 64, 37 / 64]],
}

# transvw, Keras, and stepwise: 10 to 20 voxels along every axis, filled with one number
INPAINT_KERAS = {
    "name": "noise-inpaint",
    "blocks": 1,
    "sides": [[10 / 32, 20 / 32], [10 / 64, 20 / 64], [10 / 64, 20 / 64]],
    "fill": "constant",
}

# transvw, Keras, and stepwise: all but a rim of 10 to 20 voxels is kept
OUTPAINT_KERAS = {
    "name": "noise-outpaint",
    "blocks": 1,
    "sides": [[12 / 32, 22 / 32], [44 / 64, 54 / 64], [44 / 64, 54 / 64]],
    "fill": "constant",
}


def distort(*four: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return elastic, always, and then one of four, as often each (transvw)."""
    return [ELASTIC, {"name": "one-of", "of": [*four], "weights": [0.25] * 4}]


FOUR = [BEZIER, some(5), INPAINT, OUTPAINT]
PYTORCH = distort(*FOUR)
KERAS = distort(BEZIER, some(5), INPAINT_KERAS, OUTPAINT_KERAS)
STEPWISE_DISTORT = distort(BEZIER, some(100), INPAINT_KERAS, OUTPAINT_KERAS)


def views(distortions: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return how a view is made: the whole cube, and what has to be undone (transvw)."""
    return {
        "size": SIZE,
        "channels": 1,
        "scale": [1.0, 1.0],
        "ratio": [1.0, 1.0],
        "geometry": [],
        "appearance": [],
        "distort": distortions,
    }


def unet(**changes: Any) -> Mapping[str, Any]:
    """Return the decoder: 1x1x1 at the end (transvw)."""
    published = {"name": "unet", "loss": "mse", "widths": [256, 128, 64], "head": 1}
    return {**published, **changes}


def words(head: str) -> Mapping[str, Any]:
    """Return self-classification of 44 words, as Semantic Genesis and TransVW's training had."""
    return {"name": "transvw", "classes": 44, "head": head, "hidden": 1024}


def adam(lr: float, **changes: Any) -> Mapping[str, Any]:
    """Return Adam at a rate that no batch scales and nothing decays."""
    plain = {
        "name": "adam",
        "lr": lr,
        "lr_batch": None,
        "weight_decay": 0.0,
        "schedule": "constant",
    }
    return {**plain, "betas": [0.9, 0.999], **changes}


PAPER = {
    "backbone": "unet3d",  # paper: 3-D U-Net
    "discriminator": words("keras"),  # paper: follows transvw; its batch and rate are Keras'
    "restorer": unet(up="nearest"),  # transvw, Keras
    "adversary": {  # paper: four convolutional blocks, 3x3x3; a log loss, eq. 3
        "name": "patchgan",
        "loss": "bce",
        "widths": [64, 128, 256, 512],
        "conditional": False,
    },
    "weights": {"dis": 1.0, "res": 100.0, "adv": 1.0},  # paper
    "views": views(KERAS),
    "optimizer": adam(1e-3),  # paper; a schedule is not named
    "critic_optimizer": adam(1e-3),  # paper
    "train": {"batch_size": 8, "epochs": 200},  # paper
}

RELEASED = {
    "backbone": "unet3d",  # transvw
    "discriminator": words("pytorch"),  # transvw
    "restorer": unet(up="transposed"),  # transvw, PyTorch
    "adversary": "none",  # transvw: DiRA's in 3-D was never released
    "weights": {"dis": 0.01, "res": 1.0},  # transvw
    "views": views(PYTORCH),
    "optimizer": adam(1e-3, schedule="halving", half_life=40),  # transvw, PyTorch
    "train": {"batch_size": 64, "epochs": 200, "precision": "fp32"},  # transvw; epochs ours
}

CRITIC = {  # stepwise: the U-Net's encoder, conditional, WGAN-GP
    "name": "unet-critic",
    "norm": "batch",
    "penalty": 100.0,
    "conditional": True,
}

# stepwise, first stage: a third of the images, one of elastic, non-linear, in- and out-painting
THIRD = {
    "name": "one-of",
    "of": [ELASTIC, BEZIER, INPAINT_KERAS, OUTPAINT_KERAS],
    "weights": [0.25] * 4,
    "p": 1 / 3,
}

STEPWISE = {
    "backbone": "unet3d",  # stepwise
    "discriminator": words("keras"),  # stepwise
    "restorer": unet(up="nearest", loss="l1"),  # stepwise: mean absolute error
    "adversary": CRITIC,
    "weights": {"dis": 1.0, "res": 100.0, "adv": 1.0},  # stepwise
    "views": views(STEPWISE_DISTORT),
    # stepwise: a tenth of 1e-3 where a stage has weights to start from
    "optimizer": adam(1e-4, schedule="halving", half_life=16),
    "critic_optimizer": adam(1e-3, schedule="halving", half_life=16),  # stepwise
    "train": {"batch_size": 8, "epochs": 200},  # stepwise; epochs: paper
    "stages": [  # stepwise: ((D) + R) + A
        {
            "name": "di",
            "changes": {
                "restorer": "none",
                "adversary": "none",
                "views": {"distort": [THIRD]},
                "optimizer": {"lr": 0.01, "half_life": 15},
            },
        },
        {"name": "dir", "changes": {"adversary": "none"}},
        {"name": "dira"},
    ],
}

FIXED = {
    **PAPER,
    "discriminator": words("pytorch"),
    "restorer": unet(up="nearest"),
    "adversary": {"name": "patchgan", "loss": "lsgan"},  # ours: the loss that made DiRA's numbers
    "views": views(PYTORCH),  # ours: noise is told from tissue, one grey is not
    "optimizer": adam(1e-3, schedule="cosine", warmup_epochs=1.0),  # ours
    "critic_optimizer": adam(2e-4, betas=[0.5, 0.999]),  # ours: as in 2-D
}


def axis(number: int) -> Mapping[str, Any]:
    """Return a flip; genesis flips up to three times, any axis, each with 0.4: 0.15 for each."""
    return {"name": "flip", "axis": number, "p": 0.15}


GENESIS = {
    "backbone": "unet3d",  # genesis: this line and all below
    "discriminator": "none",
    "restorer": unet(up="transposed"),
    "adversary": "none",
    "weights": {"res": 1.0},
    "views": {
        **views(
            [
                {**some(10_000), "p": 0.5},
                {"name": "bezier", "p": 0.9},
                {
                    "name": "one-of",
                    "of": [
                        {**INPAINT, "blocks": 5, "stop": 0.05},
                        {**OUTPAINT, "blocks": 5, "stop": 0.05},
                    ],
                    "weights": [0.9 * 0.2, 0.9 * 0.8],
                },
            ]
        ),
        "geometry": [axis(-1), axis(-2), axis(-3)],  # of input and target alike
    },
    "optimizer": {
        "name": "sgd",
        "lr": 1.0,
        "lr_batch": None,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "halving",
        "half_life": 40,
    },
    "train": {"batch_size": 6},
}

SEMANTIC = {
    **RELEASED,  # semantic: words, 44 of them, and their classifier; transvw's code grew from its
    # semantic: what Models Genesis undoes, thus no elastic; ours: one of the four, as in transvw
    "views": views([{"name": "one-of", "of": FOUR, "weights": [0.25] * 4}]),
}


def presets() -> Iterable[Preset]:
    """Yield what text, public codes and we say of TransVW."""
    yield Preset("paper/transvw", PAPER, "DiRA in 3-D as its text says: weights 1, 100, 1")
    yield Preset("released/transvw", RELEASED, "TransVW's public code, without an adversary")
    yield Preset("stepwise/transvw", STEPWISE, "Stepwise Pretraining's public code: di, dir, dira")
    yield Preset("fixed/transvw", FIXED, "our default in 3-D: noise, LSGAN, a cosine rate")
    yield Preset("genesis/unet3d", GENESIS, "Models Genesis as published: a 3-D U-Net restores")
    yield Preset("genesis/semantic", SEMANTIC, "Semantic Genesis: tells words, restores cubes")
