"""Views encoded by the backbone, as the Discriminator asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dira_core.contracts import demand, pyramid_flaw
from dira_core.roles import Backbone
from dira_core.types import Batch, View


@dataclass(frozen=True)
class Encoding:
    """One encoded view: its pyramid, and its deepest map averaged over space, (B, channels[-1])."""

    pyramid: list[Tensor]
    pooled: Tensor


def pool(deepest: Tensor) -> Tensor:
    """Average a map (B, C, *S) over space, in float32: (B, C)."""
    return deepest.flatten(2).float().mean(-1)


class Encodings:
    """Encode views on demand, each at most once a step, whoever asks.

    Args:
        backbone: Encodes images.
        batch: The views.
        sees: Which image of a view is encoded: "image" (distorted) or "clean" (appearance only).
    """

    def __init__(self, backbone: Backbone, batch: Batch, sees: str = "image") -> None:
        self.batch = batch
        self._backbone = backbone
        self._sees = sees
        self._encoded: dict[int, Encoding] = {}

    def __len__(self) -> int:
        return len(self.batch.views)

    def __getitem__(self, view: int) -> Encoding:
        """Encode view number `view`, or return what was encoded before.

        Raises:
            PluginError: The backbone's maps are not as it says.
        """
        if view not in self._encoded:
            pyramid = self._backbone(self.image(view))
            demand(self._backbone, pyramid_flaw(self._backbone, pyramid))
            self._encoded[view] = Encoding(pyramid, pool(pyramid[-1]))
        return self._encoded[view]

    def image(self, view: int) -> Tensor:
        """Return what is encoded of a view, (B, C, *S): for a teacher that encodes it itself."""
        chosen: View = self.batch.views[view]
        return chosen.image if self._sees == "image" else chosen.clean
