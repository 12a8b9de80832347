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

# public code: colour jitter with p 0.8; on grey images only these two parts of it act
JITTER = {"name": "intensity-jitter", "brightness": 0.4, "contrast": 0.4, "p": 0.8}

# public code: sigma 0.1 to 2 px on crops of 224 px
BLUR = {"name": "gaussian-blur", "low": 0.1 / 224, "high": 2.0 / 224, "p": 0.5}

APPEARANCE = [JITTER, BLUR]
MILD_JITTER = {**JITTER, "brightness": 0.1, "contrast": 0.1}

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


SIMSIAM = {"discriminator": "simsiam"}
BARLOW = {"discriminator": "barlow"}  # the optimizer is that of its own code
MOCO = {"discriminator": "mocov2"}

MOCO_PAPER = {
    "discriminator": {
        "name": "mocov2",
        "head_norm": False,  # both
        "momentum": 0.999,  # both
        "queue": 65536,  # MoCo-v2's code, and so DiRA's: 87 % of its 75,312 images
        "others_only": False,  # both: own older keys and random ones are negatives
        "key_norm": "batch",  # both; they also shuffle keys between GPUs
    },
    "optimizer": {"lr_batch": 256},  # MoCo-v2's code
}

MOCO_RELEASED = {
    **MOCO_PAPER,
    "optimizer": {
        "name": "sgd",  # public code: this line and all below
        "lr": 0.03,
        "lr_batch": None,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "decay_1d": True,
        "schedule": "epoch-cosine",
        "warmup_epochs": 0.0,
        "clip": None,
    },
}

SIMSIAM_PAPER = {**SIMSIAM, "optimizer": {"lr_batch": 256, "warmup_epochs": 0.0}}  # its paper
SIMSIAM_RELEASED = {
    **SIMSIAM,
    "optimizer": {"lr_batch": 256, "warmup_epochs": 0.0, "schedule": "epoch-cosine"},  # its code
}


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


def unlike_views() -> list[Mapping[str, Any]]:
    """Return the two views of Barlow Twins, which differ in blur and solarization (its code)."""
    first = [JITTER, {**BLUR, "p": 1.0}, FLIP]
    second = [JITTER, {**BLUR, "p": 0.1}, {"name": "solarize", "p": 0.2}, FLIP]
    return [{"appearance": first}, {"appearance": second}]


FIXED = {
    **TRIO,  # the optimizers are those of the discriminator's and the adversary's papers
    "views": {
        **views(224, aligned=True, disjoint=True),  # ours: flip and swap mended
        "scale": [0.5, 1.0],  # ours: smaller pieces of two lungs have little in common
        # ours: radiographs are so alike that stronger jitter is what differs most between views
        "appearance": [MILD_JITTER, BLUR],
    },
    "train": {"batch_size": 64},  # ours: fits one GPU; the rate scales with it
}

PAPER = {
    **TRIO,
    "adversary": {"name": "patchgan", "loss": "bce"},  # paper, eq. 3: a log loss
    "views": views(224, aligned=False, disjoint=True),  # paper: the flip is part of T(.)
    "critic_optimizer": CRITIC,
    "train": {"batch_size": 256},  # paper
}

BARLOW_PAPER = {
    **BARLOW,
    "views": {  # paper: as the original method
        **views(224, aligned=False, disjoint=True),
        "each": unlike_views(),
    },
}

RELEASED = {
    **TRIO,
    "views": views(224, aligned=False, disjoint=False),  # public code: its overlap test is void
    "critic_optimizer": CRITIC,
    "train": {"batch_size": 256, "epochs": 1200, "precision": "fp32"},  # public code
    "stages": [
        {"name": "dir", "changes": {"adversary": "none"}},  # public code
        # public code: takes all weights over, and the rate of batch 256 to batches of 16
        {"name": "dira", "changes": {"train": {"batch_size": 16, "epochs": 400}}},
    ],
}

STEPWISE = {
    **FIXED,
    "stages": [  # Stepwise Pretraining: ((D) + R) + A
        {"name": "di", "changes": {"restorer": "none", "adversary": "none"}},
        {"name": "dir", "changes": {"adversary": "none"}},
        {"name": "dira"},
    ],
}

CONTEXT_ENCODER = {  # Pathak et al., "Context Encoders", CVPR 2016, arXiv:1604.07379
    "backbone": "resnet50",  # ours; theirs is an AlexNet
    "discriminator": "none",
    "restorer": {"name": "unet", "loss": "mse", "region": "distorted"},  # eq. 1: the masked part
    "adversary": {"name": "patchgan", "loss": "bce"},  # eq. 2
    "weights": {"res": 0.999, "adv": 0.001},  # section 3.2
    "views": {
        "geometry": [FLIP],
        "appearance": [],
        "distort": [  # section 3.3: the central square, half as wide as the image
            {"name": "inner-cutout", "blocks": 1, "side": [0.5, 0.5], "margin": 0.25, "stop": 0.0}
        ],
    },
    "optimizer": CRITIC,  # its best-known code, as the critic's
    "critic_optimizer": CRITIC,
    "train": {"batch_size": 64},
}

GENESIS = {  # Zhou et al., "Models Genesis", MICCAI 2019, arXiv:1908.06912; its code, in 2-D
    "backbone": "resnet50",  # ours; theirs is a 3-D U-Net
    "discriminator": "none",
    "restorer": {"name": "unet", "loss": "mse"},
    "adversary": "none",
    "weights": {"res": 1.0},
    "views": {
        "geometry": [{**FLIP, "p": 0.4}],
        "appearance": [],
        "distort": [
            {"name": "pixel-shuffle", "p": 0.5},
            {"name": "bezier", "p": 0.9},
            {
                "name": "one-of",
                "of": [
                    {"name": "noise-inpaint", "blocks": 5, "stop": 0.05},
                    {"name": "noise-outpaint", "blocks": 5, "stop": 0.05},
                ],
                "weights": [0.9 * 0.2, 0.9 * 0.8],
            },
        ],
    },
    "optimizer": {"name": "sgd", "lr": 1.0, "lr_batch": None, "momentum": 0.9, "weight_decay": 0.0},
    "train": {"batch_size": 64},
}

TINY = {
    **TRIO,
    "backbone": "resnet18",  # ours, as all of this preset: a first look on a laptop
    "data": {"name": "phantom", "n": 1024},
    "discriminator": {"name": "simsiam", "dim": 512, "hidden": 128},
    "views": {
        **views(64, aligned=True, disjoint=True),
        "scale": [0.4, 1.0],
        "appearance": [MILD_JITTER, BLUR],  # brightness is what tells haze from healthy lungs
    },
    "optimizer": {"lr_batch": None},  # 128 steps are too few for a scaled rate
    "train": {"batch_size": 32, "epochs": 4},
    "checkpoint": {"every_steps": 50},
    "log": {"every": 4},
    "health": {"every": 16},
}

TINY3D = {
    **TINY,
    "backbone": {"name": "unet3d", "width": 8},  # a quarter of the published one
    "restorer": {"name": "unet", "loss": "mse", "widths": [64, 32, 16]},
    "data": {"name": "phantom3d", "n": 256},
    "discriminator": {"name": "simsiam", "dim": 128, "hidden": 32},
    "adversary": {"name": "patchgan", "loss": "lsgan", "widths": [16, 32, 64]},
    "views": {
        **views(32, aligned=True, disjoint=True),
        "size": [16, 32, 32],
        "scale": [0.4, 1.0],
        "appearance": [MILD_JITTER, BLUR],
    },
    "train": {"batch_size": 8, "epochs": 4},
}

METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "mocov2": {"fixed": MOCO, "paper": MOCO_PAPER, "released": MOCO_RELEASED},
    "barlow": {"fixed": BARLOW, "paper": BARLOW_PAPER, "released": BARLOW},
    "simsiam": {"fixed": SIMSIAM, "paper": SIMSIAM_PAPER, "released": SIMSIAM_RELEASED},
}
"""What the presets say of the three Discriminators of the paper."""

BASES: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "fixed": (FIXED, "simsiam", "our default: flip aligned, true swaps, rate scaled by batch"),
    "paper": (PAPER, "simsiam", "the paper's text: log loss, each method's own optimizer"),
    "released": (RELEASED, "mocov2", "the public code, quirks included, in its two stages"),
}
"""What they say of all else, whose Discriminator is taken where none is named, and a summary."""


@hookimpl
def dira_presets() -> Iterable[Preset]:
    """Offer what text, public code and we say, for each method, and some kin."""
    for base, (shared, usual, summary) in BASES.items():
        yield Preset(base, {**shared, **METHODS[usual][base]}, f"{summary} ({usual})")
        for method, own in METHODS.items():
            yield Preset(f"{base}/{method}", {**shared, **own[base]}, f"{summary} ({method})")
    yield Preset("stepwise", STEPWISE, "di, then dir, then dira, each from the one before")
    yield Preset("context-encoder", CONTEXT_ENCODER, "fill in the masked centre, with a critic")
    yield Preset("genesis", GENESIS, "Models Genesis: restore shuffled, bent and painted images")
    yield Preset("tiny", TINY, "built-in data, minutes on a laptop's processor")
    yield Preset("tiny3d", TINY3D, "built-in volumes, minutes on a laptop's processor")
