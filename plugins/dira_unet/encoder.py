"""The encoder of the 3-D U-Net."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dira_core import Backbone
from dira_unet import UNet3dOptions
from dira_unet.layers import conv_norm_relu

_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}


class UNetEncoder(Backbone):
    """Encode images (B, channels, *S) into maps with strides 1, 2, 4 and 8.

    Level d has a convolution to width 2^d channels and one to twice as many, each with its norm and
    ReLU; max-pools halve between levels, rounding up. With the published width of 32 the maps have
    64, 128, 256 and 512 channels, and with `unet` as the decoder (`up = "transposed"`, `head = 1`)
    there are 19.07 M parameters, as published. A convolution before a norm has no bias.

    Source: Cicek et al., "3D U-Net", MICCAI 2016, arXiv:1606.06650, with the sizes of Models
    Genesis (arXiv:1908.06912) and TransVW (arXiv:2102.10680).

    Args:
        options: Width, levels, norm.
        channels: Channels of an image.
        dims: Number of spatial axes.
    """

    def __init__(self, options: UNet3dOptions, channels: int, dims: int) -> None:
        super().__init__()
        widths = [options.width << level for level in range(options.levels)]
        self.channels = tuple(2 * width for width in widths)
        self.strides = tuple(1 << level for level in range(options.levels))
        self.in_channels, self.dims = channels, dims
        inputs = (channels, *self.channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                conv_norm_relu(dims, before, width, options.norm),
                conv_norm_relu(dims, width, 2 * width, options.norm),
            )
            for before, width in zip(inputs, widths, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        pyramid = [self.levels[0](images)]
        for level in self.levels[1:]:
            halved = _MAX_POOL[self.dims](pyramid[-1], 2, ceil_mode=True)
            pyramid.append(level(halved))
        return pyramid

    def segments(self) -> list[nn.Module]:
        """Return the levels."""
        return [*self.levels]
