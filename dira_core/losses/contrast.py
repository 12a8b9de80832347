"""Tell an image's other view from other images: MoCo and SimCLR."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dira_core.losses.arguments import in_float32, same_shape
from dira_core.losses.closed_form import with_gradients
from dira_core.losses.siamese import SMALLEST_NORM

BLOCK = 4096
"""Negatives compared at a time: their similarities to a batch stay in the processor's cache."""


@in_float32
def info_nce(
    queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float, own: Tensor | None = None
) -> Tensor:
    """Tell each query's key from negatives that all queries share.

    Source: He et al., "Momentum Contrast", CVPR 2020, arXiv:1911.05722, eq. 1, mean over queries.

    Only queries get a gradient: keys and negatives are a teacher's, and treated as detached.
    Negatives are neither copied nor kept: they may be overwritten before the backward pass. The
    similarities of all never exist at once, and the gradient is computed with the value.

    Args:
        queries: Unit vectors, (B, D), or (B, N, D): N of each image.
        keys: Unit vectors of the same images' other view, one for each query.
        negatives: Unit vectors of other images, (K, D).
        temperature: Divides the similarities, T in the paper.
        own: Boolean, (B, K): negatives left out for an image's queries, such as its own older keys;
            a query whose negatives are all left out has no loss.

    Returns:
        Scalar in float32.

    Raises:
        ValueError: The shapes do not match.
    """
    same_shape(queries, keys, "queries and keys")
    if own is not None and own.shape != (len(queries), len(negatives)):
        raise ValueError(
            f"own must be {(len(queries), len(negatives))}: queries, negatives; got {(*own.shape,)}"
        )
    rows = [tensor.detach().flatten(0, -2) for tensor in (queries, keys, negatives)]
    value, gradient = _info_nce(rows[0], rows[1], rows[2], temperature, own)
    return with_gradients(value, (queries,), gradient.view_as(queries))


def _info_nce(
    queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient with respect to the queries, (B N, D).

    Sums of exponentials run over blocks of negatives relative to the largest exponent so far, as
    in Milakov & Gimelshein, arXiv:1805.02867, algorithm 3.
    """
    scaled = queries / temperature
    positive = (scaled * keys).sum(1, keepdim=True)
    largest, total, pull = positive, torch.zeros_like(positive), torch.zeros_like(queries)
    for start in range(0, len(negatives), BLOCK):
        block = negatives[start : start + BLOCK]
        weights = scaled @ block.T
        if own is not None:
            of_images = weights.view(len(own), -1, len(block))
            of_images.masked_fill_(own[:, None, start : start + BLOCK], -torch.inf)
        before, largest = largest, torch.maximum(largest, weights.amax(1, keepdim=True))
        weights.sub_(largest).exp_()
        fade = (before - largest).exp()
        total = total * fade + weights.sum(1, keepdim=True)
        pull = torch.addmm(pull * fade, weights, block)
    # log(1 + sum of e^(negative - positive)), exact where it is nearly 0
    value = F.softplus(largest + total.log() - positive).mean()
    everything = total + (positive - largest).exp()
    return value, (pull - total * keys) / (everything * temperature * len(queries))


@in_float32
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Tell each embedding's other view from all other embeddings of both views.

    Source: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, arXiv:2002.05709,
    eq. 1, mean over the 2B embeddings, each of which looks for its partner.

    Args:
        z1: Embeddings of the first view, of any length, (B, D).
        z2: Embeddings of the second view, (B, D).
        temperature: Divides the cosines, tau in the paper.

    Returns:
        Scalar in float32; 0 if B is 1.

    Raises:
        ValueError: The shapes differ.
    """
    same_shape(z1, z2, "z1 and z2")
    z = F.normalize(torch.cat([z1, z2]), eps=SMALLEST_NORM)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    return F.cross_entropy(similarity, partner)
