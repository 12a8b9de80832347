"""Losses as pure functions of tensors: scalars in float32, computed outside autocast."""

from __future__ import annotations

from dira_core.losses.adversarial import bce_critic as bce_critic
from dira_core.losses.adversarial import bce_generator as bce_generator
from dira_core.losses.adversarial import gradient_penalty as gradient_penalty
from dira_core.losses.adversarial import hinge_critic as hinge_critic
from dira_core.losses.adversarial import hinge_generator as hinge_generator
from dira_core.losses.adversarial import lsgan_critic as lsgan_critic
from dira_core.losses.adversarial import lsgan_generator as lsgan_generator
from dira_core.losses.adversarial import minimax_generator as minimax_generator
from dira_core.losses.adversarial import wgan_critic as wgan_critic
from dira_core.losses.adversarial import wgan_generator as wgan_generator
from dira_core.losses.arguments import in_float32 as in_float32
from dira_core.losses.classes import classification as classification
from dira_core.losses.contrast import info_nce as info_nce
from dira_core.losses.contrast import nt_xent as nt_xent
from dira_core.losses.redundancy import barlow_twins as barlow_twins
from dira_core.losses.restoration import mean_absolute as mean_absolute
from dira_core.losses.restoration import mean_squared as mean_squared
from dira_core.losses.siamese import negative_cosine as negative_cosine
