"""Distortions that move the whole image."""

from __future__ import annotations

from torch import Tensor

from dira_core import Distortion, Draws, RecipeError
from dira_distortions import FlipOptions


class Flip(Distortion):
    """Mirror images along one axis; `box` swaps the edges of that axis."""

    def __init__(self, options: FlipOptions) -> None:
        super().__init__()
        self.axis = options.axis

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S), mirrored."""
        if -self.axis > images.dim() - 2:
            raise RecipeError(
                f"flip needs a spatial axis: got {self.axis} for {images.dim() - 2}-D images, "
                "use -1 for the last one"
            )
        return images.flip(self.axis)

    def box(self, box: Tensor, draws: Draws) -> Tensor:
        """Return (B, len(S), 2) with the edges of the axis swapped."""
        flipped = box.clone()
        flipped[:, self.axis] = box[:, self.axis].flip(-1)
        return flipped
