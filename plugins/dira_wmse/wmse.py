"""The W-MSE Discriminator."""

from __future__ import annotations

import torch
from torch import Tensor

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    gather_rows,
    in_float32,
    mlp,
    negative_cosine,
)
from dira_wmse import WMSEOptions


class WMSE(Discriminator):
    """Bring the whitened embeddings of two views of an image together.

    Source: Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021,
    arXiv:2007.06346, section 3. Whitening keeps them from collapsing.

    Args:
        options: Widths of the head, whitening.
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    def __init__(self, options: WMSEOptions, backbone: Backbone) -> None:
        super().__init__()
        self._options = options
        self.projector = mlp([backbone.channels[-1], options.hidden, options.dim])

    def forward(self, encodings: Encodings) -> Objective:
        pooled = torch.cat([encodings[view].pooled for view in range(2)])
        z = self.projector(pooled).unflatten(0, (2, -1))
        rows = gather_rows(z.transpose(0, 1)).transpose(0, 1)
        how = self._options
        return Objective(w_mse(rows, how.iterations, how.epsilon), embedding=z[0])


@in_float32
def w_mse(z: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Whiten slices of a batch, and average the squared distance of its normalised views.

    A batch is cut at random into slices of at least 2 D images; a smaller one is one slice.

    Args:
        z: Embeddings of two views, (2, B, D); B at least 2.
        iterations: Times the batch is cut anew.
        epsilon: See `whiten`.

    Returns:
        Scalar in [0, 4], in float32.
    """
    _, batch, dim = z.shape
    losses = []
    for _ in range(iterations):
        slices = torch.randperm(batch, device=z.device).tensor_split(max(1, batch // (2 * dim)))
        z1, z2 = torch.cat([whiten_groups(z[:, rows], epsilon) for rows in slices], dim=1)
        losses.append(2 + 2 * negative_cosine(z1, z2))
    return torch.stack(losses).mean()


def whiten_groups(z: Tensor, epsilon: float) -> Tensor:
    """Whiten groups of at most half as many dimensions as there are rows, (V, N, D).

    All D are one group where N is at least 2 D, as the paper asks. With fewer rows a covariance
    would be singular, and whitening a mere choice of axes: then groups are drawn at random, for
    both views alike (Weng et al., NeurIPS 2022, arXiv:2210.03586: random group partition).
    """
    dim = z.shape[2]
    n_groups = -(-dim // (z.shape[1] // 2))
    drawn = torch.randperm if n_groups > 1 else torch.arange
    groups = drawn(dim, device=z.device).tensor_split(n_groups)
    return torch.cat([whiten(z[:, :, group], epsilon) for group in groups], dim=2)


def whiten(z: Tensor, epsilon: float) -> Tensor:
    """Give vectors (..., N, D) mean 0 and covariance 1, by the Cholesky factor.

    Source: Siarohin et al., ICLR 2019, arXiv:1806.00420, as Ermolov et al. use it. What is not
    finite stays so, and is not an error.

    Args:
        z: Vectors, (..., N, D).
        epsilon: Part of (1 + mean variance) that is added to every variance before.
    """
    centred = z - z.mean(-2, keepdim=True)
    covariance = centred.mT @ centred / (z.shape[-2] - 1)
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = (epsilon * (1 + variance))[..., None, None]
    identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    factor, _ = torch.linalg.cholesky_ex(covariance + ridge * identity)
    white: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False)
    return white.mT
