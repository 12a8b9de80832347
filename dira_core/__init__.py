"""dira: self-supervised pretraining of medical images by Discriminator, Restorer and Adversary.

Every public name is listed here and imported when first used, so that `import dira_core` stays free
of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dira_core.api import Result as Result
    from dira_core.api import pretrain as pretrain
    from dira_core.api import run as run
    from dira_core.build import build_source as build_source
    from dira_core.choices import DistortionChoice as DistortionChoice
    from dira_core.clusters import kmeans as kmeans
    from dira_core.clusters import pca_whiten as pca_whiten
    from dira_core.components import Command as Command
    from dira_core.components import Component as Component
    from dira_core.components import DistortionOptions as DistortionOptions
    from dira_core.components import Options as Options
    from dira_core.components import Preset as Preset
    from dira_core.data.cutting import whole_images as whole_images
    from dira_core.data.folder import FileSource as FileSource
    from dira_core.data.labelled import FileMasks as FileMasks
    from dira_core.data.labelled import mask_pixels as mask_pixels
    from dira_core.data.manifest import find_column as find_column
    from dira_core.data.manifest import read_csv as read_csv
    from dira_core.distributed import gather_rows as gather_rows
    from dira_core.draws import Draws as Draws
    from dira_core.encodings import Encoding as Encoding
    from dira_core.encodings import Encodings as Encodings
    from dira_core.encodings import pool as pool
    from dira_core.errors import DataError as DataError
    from dira_core.errors import DiraError as DiraError
    from dira_core.errors import PluginError as PluginError
    from dira_core.errors import RecipeError as RecipeError
    from dira_core.export import Preprocessing as Preprocessing
    from dira_core.export import Pretrained as Pretrained
    from dira_core.export import load as load
    from dira_core.exports.libraries import Twin as Twin
    from dira_core.files import write_atomic as write_atomic
    from dira_core.filters import blurring as blurring
    from dira_core.filters import filtered as filtered
    from dira_core.hookspecs import hookimpl as hookimpl
    from dira_core.layering import gather as gather
    from dira_core.losses import barlow_twins as barlow_twins
    from dira_core.losses import bce_critic as bce_critic
    from dira_core.losses import bce_generator as bce_generator
    from dira_core.losses import classification as classification
    from dira_core.losses import gradient_penalty as gradient_penalty
    from dira_core.losses import hinge_critic as hinge_critic
    from dira_core.losses import hinge_generator as hinge_generator
    from dira_core.losses import in_float32 as in_float32
    from dira_core.losses import info_nce as info_nce
    from dira_core.losses import lsgan_critic as lsgan_critic
    from dira_core.losses import lsgan_generator as lsgan_generator
    from dira_core.losses import mean_absolute as mean_absolute
    from dira_core.losses import mean_squared as mean_squared
    from dira_core.losses import minimax_generator as minimax_generator
    from dira_core.losses import negative_cosine as negative_cosine
    from dira_core.losses import nt_xent as nt_xent
    from dira_core.losses import wgan_critic as wgan_critic
    from dira_core.losses import wgan_generator as wgan_generator
    from dira_core.nn.layers import batch_norm as batch_norm
    from dira_core.nn.layers import cells as cells
    from dira_core.nn.layers import conv as conv
    from dira_core.nn.layers import doubling_conv as doubling_conv
    from dira_core.nn.layers import instance_norm as instance_norm
    from dira_core.nn.layers import mlp as mlp
    from dira_core.nn.layers import norm_layer as norm_layer
    from dira_core.nn.layers import unit as unit
    from dira_core.nn.layers import upsample as upsample
    from dira_core.nn.queue import Queue as Queue
    from dira_core.nn.resnet import ResNet as ResNet
    from dira_core.nn.teacher import Teacher as Teacher
    from dira_core.nn.teacher import rising_momentum as rising_momentum
    from dira_core.noise import Noise as Noise
    from dira_core.operations import build_distortion as build_distortion
    from dira_core.operations import distort as distort
    from dira_core.recipe import Recipe as Recipe
    from dira_core.resolving import resolve as resolve
    from dira_core.revival import load_run as load_run
    from dira_core.roles import Adversary as Adversary
    from dira_core.roles import Backbone as Backbone
    from dira_core.roles import Change as Change
    from dira_core.roles import Discriminator as Discriminator
    from dira_core.roles import Distortion as Distortion
    from dira_core.roles import FeaturePass as FeaturePass
    from dira_core.roles import Pyramid as Pyramid
    from dira_core.roles import Restorer as Restorer
    from dira_core.roles import Source as Source
    from dira_core.roles import Tracker as Tracker
    from dira_core.settings import Settings as Settings
    from dira_core.source_options import VolumeOptions as VolumeOptions
    from dira_core.targets import Labelled as Labelled
    from dira_core.targets import Labels as Labels
    from dira_core.targets import Masks as Masks
    from dira_core.transfer.measure import Transferred as Transferred
    from dira_core.transfer.measure import measure_transfer as measure_transfer
    from dira_core.transfer.plan import transfer_plan as transfer_plan
    from dira_core.trio import Trio as Trio
    from dira_core.types import Batch as Batch
    from dira_core.types import Image as Image
    from dira_core.types import Objective as Objective
    from dira_core.types import Progress as Progress
    from dira_core.types import View as View

__version__ = "0.1.0"

_PUBLIC = {
    "api": ["Result", "pretrain", "run"],
    "build": ["build_source"],
    "choices": ["DistortionChoice"],
    "clusters": ["kmeans", "pca_whiten"],
    "components": ["Command", "Component", "DistortionOptions", "Options", "Preset"],
    "data.cutting": ["whole_images"],
    "data.folder": ["FileSource"],
    "data.labelled": ["FileMasks", "mask_pixels"],
    "data.manifest": ["find_column", "read_csv"],
    "distributed": ["gather_rows"],
    "draws": ["Draws"],
    "encodings": ["Encoding", "Encodings", "pool"],
    "errors": ["DataError", "DiraError", "PluginError", "RecipeError"],
    "export": ["Preprocessing", "Pretrained", "load"],
    "exports.libraries": ["Twin"],
    "files": ["write_atomic"],
    "filters": ["blurring", "filtered"],
    "hookspecs": ["hookimpl"],
    "layering": ["gather"],
    "losses": [
        "barlow_twins",
        "bce_critic",
        "bce_generator",
        "classification",
        "gradient_penalty",
        "hinge_critic",
        "hinge_generator",
        "in_float32",
        "info_nce",
        "lsgan_critic",
        "lsgan_generator",
        "mean_absolute",
        "mean_squared",
        "minimax_generator",
        "negative_cosine",
        "nt_xent",
        "wgan_critic",
        "wgan_generator",
    ],
    "nn.layers": [
        "batch_norm",
        "cells",
        "conv",
        "doubling_conv",
        "instance_norm",
        "mlp",
        "norm_layer",
        "unit",
        "upsample",
    ],
    "nn.queue": ["Queue"],
    "nn.resnet": ["ResNet"],
    "nn.teacher": ["Teacher", "rising_momentum"],
    "noise": ["Noise"],
    "operations": ["build_distortion", "distort"],
    "recipe": ["Recipe"],
    "resolving": ["resolve"],
    "revival": ["load_run"],
    "roles": [
        "Adversary",
        "Backbone",
        "Change",
        "Discriminator",
        "Distortion",
        "FeaturePass",
        "Pyramid",
        "Restorer",
        "Source",
        "Tracker",
    ],
    "settings": ["Settings"],
    "source_options": ["VolumeOptions"],
    "targets": ["Labelled", "Labels", "Masks"],
    "transfer.measure": ["Transferred", "measure_transfer"],
    "transfer.plan": ["transfer_plan"],
    "trio": ["Trio"],
    "types": ["Batch", "Image", "Objective", "Progress", "View"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dira_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dira_core.{_HOME[name]}"), name)
