"""Labelled sets in the layouts they are distributed in, trained as published.

The defaults are those of the public code that the paper's authors fine-tune with, as far as a plan
can say them; what differs is in docs/transfer.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dira_core import Component, hookimpl
from dira_targets.options import (
    BratsOptions,
    CandidatesOptions,
    ChestXray14Options,
    CheXpertOptions,
    LidcOptions,
    LitsOptions,
    Luna16Options,
    MontgomeryOptions,
    SiimOptions,
)

if TYPE_CHECKING:
    from dira_core import Labels, Masks

DIRA_API = 1

CHEST = {
    "training": {
        "optimizer": {"name": "adam", "lr": 2e-4, "weight_decay": 0.0, "schedule": "constant"},
        "batch_size": 32,
        "epochs": 1000,
        "patience": 10,
        "plateau": 5,
        "crop": (0.08, 1.0),
        "crop_p": 1.0,
        "flip_p": 0.5,
    }
}
"""How findings of chest radiographs are fine-tuned."""

OF_MASKS = 250
"""Passes over few images: a decoder needs more of them than a linear layer."""

LUNGS = {
    "training": {
        "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "epoch-cosine"},
        "batch_size": 32,
        "epochs": 200,
        "least_steps": 4,  # Montgomery has no more: part of its labels trains as long
        "least_validation": 5,
        "few_passes": OF_MASKS,
        "patience": 20,
        "plateau": None,
        "crop": (0.485, 1.0),
        "crop_p": 0.25,
        "flip_p": 0.0,
    }
}
"""How masks of chest radiographs are fine-tuned."""


def volumes(batch_size: int, patience: int, few_passes: int = 50) -> dict[str, Any]:
    """Return how volumes are fine-tuned in Models Genesis; it crops nothing."""
    return {
        "training": {
            "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"},
            "batch_size": batch_size,
            "epochs": 10_000,
            "least_steps": 7,  # LiTS has no more
            "least_validation": 5,
            "few_passes": few_passes,
            "patience": patience,
            "plateau": 6,
            "crop_p": 0.0,
            "flip_p": 0.0,
        }
    }


def reading(module: str) -> Callable[[Any, Any], Labels | Masks]:
    """Return what builds a target by the `read` of a module, which is imported no earlier."""

    def build(options: Any, window: Any) -> Labels | Masks:
        target: Labels | Masks = import_module(f"dira_targets.{module}").read(options, window)
        return target

    return build


@hookimpl
def dira_targets() -> Iterable[Component]:
    """The paper's targets, and candidates of any kind in place of its private one."""
    yield Component(
        "candidates",
        CandidatesOptions,
        reading("candidates"),
        summary="places in volumes, each a finding or not; trained as emboli were",
        paper="Zhou et al., MedIA 67, 2021, arXiv:2004.07882",
        dims=(3,),
        defaults=volumes(24, 38),
    )
    yield Component(
        "luna16",
        Luna16Options,
        reading("luna16"),
        summary="which candidates in 888 chest CTs are nodules",
        paper="Setio et al., MedIA 42, 2017, arXiv:1612.08012",
        dims=(3,),
        defaults=volumes(24, 10),
    )
    yield Component(
        "lidc-idri",
        LidcOptions,
        reading("lidc"),
        summary="masks of nodules in 1,018 chest CTs",
        paper="Armato et al., Med Phys 38(2), 2011",
        dims=(3,),
        defaults=volumes(16, 50, OF_MASKS),
    )
    yield Component(
        "lits",
        LitsOptions,
        reading("lits"),
        summary="masks of the liver in 130 abdominal CTs",
        paper="Bilic et al., MedIA 84, 2023, arXiv:1901.04056",
        dims=(3,),
        defaults=volumes(16, 20, OF_MASKS),
    )
    yield Component(
        "brats",
        BratsOptions,
        reading("brats"),
        summary="masks of the whole tumour in 285 brain MRIs",
        paper="Bakas et al., arXiv:1811.02629",
        dims=(3,),
        defaults=volumes(16, 30, OF_MASKS),
    )
    yield Component(
        "chestxray14",
        ChestXray14Options,
        reading("chestxray14"),
        summary="14 findings of 112,120 radiographs, NIH's split",
        paper="Wang et al., CVPR 2017, arXiv:1705.02315",
        dims=(2,),
        defaults=CHEST,
    )
    yield Component(
        "chexpert",
        CheXpertOptions,
        reading("chexpert"),
        summary="14 findings of 224,316 radiographs, 5 of them scored",
        paper="Irvin et al., AAAI 2019, arXiv:1901.07031",
        dims=(2,),
        defaults=CHEST,
    )
    yield Component(
        "siim-acr",
        SiimOptions,
        reading("siim"),
        summary="masks of pneumothorax in 12,047 radiographs",
        paper="SIIM-ACR Pneumothorax Segmentation, Kaggle 2019",
        dims=(2,),
        defaults=LUNGS,
    )
    yield Component(
        "montgomery",
        MontgomeryOptions,
        reading("montgomery"),
        summary="masks of both lungs in 138 radiographs",
        paper="Jaeger et al., IEEE TMI 33(2), 2014",
        dims=(2,),
        defaults=LUNGS,
    )
