"""Residual networks of torchvision as backbones."""

from __future__ import annotations

from torch import Tensor, nn

from dira_core.roles import Backbone


class ResNet(Backbone):
    """Encode images (B, channels, H, W) into five maps, with strides 2, 4, 8, 16 and 32.

    The first map is the stem's before its max-pool. Parameters are named and initialised as
    torchvision's, without `fc`, so that weights travel both ways.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.

    Args:
        depth: 18, 34, 50 or 101.
        channels: Channels of an image.
        zero_init_residual: Start every residual branch at zero (Goyal et al., arXiv:1706.02677).
    """

    dims = 2
    strides = (2, 4, 8, 16, 32)

    def __init__(self, depth: int, channels: int, *, zero_init_residual: bool) -> None:
        super().__init__()
        from torchvision.models import get_model  # slow to import: only where one is built

        net = get_model(f"resnet{depth}", weights=None, zero_init_residual=zero_init_residual)
        deepest = net.fc.in_features
        self.channels = (64, deepest // 8, deepest // 4, deepest // 2, deepest)
        self.in_channels = channels
        self.conv1 = net.conv1 if channels == net.conv1.in_channels else _stem(channels)
        self.bn1, self.relu, self.maxpool = net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        stem = self.relu(self.bn1(self.conv1(images)))
        pyramid = [stem, self.layer1(self.maxpool(stem))]
        for layer in (self.layer2, self.layer3, self.layer4):
            pyramid.append(layer(pyramid[-1]))
        return pyramid

    def segments(self) -> list[nn.Module]:
        """Return the residual blocks."""
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]


def _stem(channels: int) -> nn.Conv2d:
    """Return torchvision's first convolution for another number of channels."""
    conv = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
