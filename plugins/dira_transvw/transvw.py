"""The TransVW Discriminator."""

from __future__ import annotations

from torch import Tensor, nn

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    RecipeError,
    batch_norm,
    classification,
    conv,
    pool,
)
from dira_transvw import TransVWOptions


class TransVW(Discriminator):
    """Tell which visual word a view shows, from the deepest map.

    Source: Haghighi et al., "Transferable Visual Words", TMI 2021, arXiv:2102.10680, eq. 1, with
    the heads of its public PyTorch and Keras code. The scores are logits: the public code takes the
    logarithm of a softmax, which can be that of 0.

    Args:
        options: Number of words, head.
        backbone: Gives the deepest map.
    """

    n_views = 1

    def __init__(self, options: TransVWOptions, backbone: Backbone) -> None:
        super().__init__()
        self._classes = options.classes
        deepest, hidden = backbone.channels[-1], options.hidden
        width = hidden if options.head == "pytorch" else deepest
        self.conv = nn.Sequential(
            conv(backbone.dims, deepest, width, bias=False),
            batch_norm(backbone.dims, width),
            nn.ReLU(inplace=True),
        )
        between = [] if options.head == "pytorch" else [nn.Linear(deepest, hidden), nn.ReLU()]
        self.head = nn.Sequential(*between, nn.Linear(hidden, options.classes))

    def scores(self, deepest: Tensor) -> Tensor:
        """Return logits (B, classes) of deepest maps (B, C, *S)."""
        scores: Tensor = self.head(pool(self.conv(deepest)))
        return scores

    def forward(self, encodings: Encodings) -> Objective:
        word = encodings.batch.label
        if word is None:
            raise RecipeError(
                "transvw needs data that say which visual word an image shows: find some by `dira "
                "words discover`, then --data FOLDER"
            )
        if word.max() >= self._classes:
            raise RecipeError(
                f"transvw tells {self._classes} words apart: got number {int(word.max())}, set "
                "discriminator.classes to how many the data have"
            )
        return classification(self.scores(encodings[0].pyramid[-1]), word)
