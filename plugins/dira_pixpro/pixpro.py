"""The PixPro Discriminator."""

from __future__ import annotations

import torch
from torch import Tensor

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    Progress,
    Teacher,
    cells,
    conv,
    in_float32,
    mlp,
    rising_momentum,
)
from dira_pixpro import PixProOptions


class PixPro(Discriminator):
    """Let cells, after propagation, match the teacher's cells of the other view at the same place.

    Source: Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised
    Visual Representation Learning", CVPR 2021, arXiv:2011.10043, eq. 1 and 3 to 5. The values that
    propagate are normalised, as in the public code; its loss is twice eq. 5.

    Args:
        options: Widths, momentum, reach, sharpness.
        backbone: Gives the deepest map, (B, backbone.channels[-1], *S).
    """

    n_views = 2

    def __init__(self, options: PixProOptions, backbone: Backbone) -> None:
        super().__init__()
        self._options = options
        width, dims = backbone.channels[-1], backbone.dims
        self.projector = mlp([width, options.hidden, options.dim], dims=dims)
        self.transform = conv(dims, options.dim, options.dim, kernel=1)
        self.teacher = Teacher([backbone, self.projector])

    def forward(self, encodings: Encodings) -> Objective:
        maps = [self.projector(encodings[view].pyramid[-1]) for view in range(2)]
        keys = [self._key(encodings.image(view)) for view in range(2)]
        boxes = [encodings.batch.views[view].box for view in range(2)]
        extents = [m.shape[2:] for m in maps]
        near = same_place(boxes[0], boxes[1], extents[0], extents[1], self._options.reach)
        y1, y2 = (propagate(m, self.transform(m), self._options.sharpness) for m in maps)
        loss = consistency(y1, keys[1], near) + consistency(y2, keys[0], near.mT)
        pairs = near.float().sum((1, 2)).mean()
        return Objective(loss, {"pairs": pairs}, maps[0].flatten(2).float().mean(2))

    def after_step(self, progress: Progress) -> None:
        """Let the teacher follow, ever more slowly."""
        self.teacher.update(rising_momentum(self._options.momentum, progress.fraction))

    @torch.no_grad()
    def _key(self, images: Tensor) -> Tensor:
        """Return the teacher's map of images (B, C, *S)."""
        projected: Tensor = self.teacher[1](self.teacher[0](images)[-1])
        return projected


@in_float32
def propagate(maps: Tensor, values: Tensor, sharpness: float) -> Tensor:
    """Add up the values of all cells, each as similar as it is to the cell at hand (eq. 3 and 4).

    Args:
        maps: (B, C, *S) with N cells.
        values: (B, D, *S).
        sharpness: Power of the cosine, of which negative ones count as 0.

    Returns:
        (B, D, *S).
    """
    unit = cells(maps)
    similarity = (unit @ unit.mT).clamp(min=0) ** sharpness
    return (similarity @ cells(values)).transpose(1, 2).reshape(values.shape)


@in_float32
def consistency(predicted: Tensor, keys: Tensor, near: Tensor) -> Tensor:
    """Return minus the mean cosine of an image's positive pairs, averaged over images (eq. 5).

    Args:
        predicted: (B, C, *S) with N cells.
        keys: (B, C, *S') with M cells.
        near: Boolean, (B, N, M), the positive pairs; an image without any adds 0.
    """
    cosine = cells(predicted) @ cells(keys).mT
    return -((cosine * near).sum((1, 2)) / near.sum((1, 2)).clamp(min=1)).mean()


def same_place(
    box: Tensor, other: Tensor, extent: torch.Size, other_extent: torch.Size, reach: float
) -> Tensor:
    """Return which cells of two views lie at the same place of the source image (eq. 1).

    Distances between centres count in diagonals of a cell: of the view whose cells are larger.

    Args:
        box: Edges of the first view, (B, D, 2) in px; see `View.box`. None is near a NaN.
        other: Edges of the second view.
        extent: Cells along each axis of the first view, N in all.
        other_extent: Cells of the second view, M in all.
        reach: Distance below which two cells show the same place.

    Returns:
        Boolean, (B, N, M).
    """
    here, diagonal = cell_centres(box, extent)
    there, other_diagonal = cell_centres(other, other_extent)
    # the product form that cdist prefers loses digits where distances are small
    distance = torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist")
    return distance < reach * torch.maximum(diagonal, other_diagonal)[:, None, None]


def cell_centres(box: Tensor, extent: torch.Size) -> tuple[Tensor, Tensor]:
    """Return where the cells of views have their centres, (B, N, D), and their diagonals, (B,).

    Where a view is flipped its edges are swapped, and cells count backwards.
    """
    step = (box[..., 1] - box[..., 0]) / torch.tensor(extent, device=box.device)
    along = [torch.arange(cells, device=box.device) + 0.5 for cells in extent]
    place = torch.cartesian_prod(*along)
    return box[:, None, :, 0] + place * step[:, None], step.norm(dim=1)
