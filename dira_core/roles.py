"""The roles a plugin can play, as abstract modules.

Shapes are (B, C, *S) throughout: S is (H, W) or (D, H, W), and nothing here knows which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dira_core.types import Image, Objective, Progress, View

if TYPE_CHECKING:
    import numpy as np

    from dira_core.draws import Draws
    from dira_core.encodings import Encodings

Change = Callable[["np.ndarray"], "np.ndarray"]
"""Distort one image (C, *S), float32 in [0, 1]; what it is given is its own to write into."""

Pyramid = Sequence[Tensor]
"""Maps of a backbone, shallow to deep: each (B, channels[i], *ceil(S / strides[i]))."""


class Backbone(nn.Module, ABC):
    """The encoder f, kept for transfer.

    Attributes:
        channels: Channels of each map of the pyramid, shallow to deep.
        strides: Stride of each map against the input.
        in_channels: Channels of an image.
        dims: Number of spatial axes.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_channels: int
    dims: int

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images (B, in_channels, *S) into a pyramid, shallow to deep."""

    def segments(self) -> list[nn.Module]:
        """Return parts that can be sharded and computed again one by one; each is called once."""
        return []


class Discriminator(nn.Module, ABC):
    """Make embeddings of the same pseudo-class agree (L_dis).

    Attributes:
        n_views: Views of an image it compares.
    """

    n_views: int = 2

    @abstractmethod
    def forward(self, encodings: Encodings) -> Objective:
        """Return the loss over the encoded views, its metrics and the embedding z of view 0.

        Queues and memory banks (buffers) may be written here, in training only.
        """

    def prepare(self, n_images: int) -> None:
        """Make what depends on the number of images in the source: queues, memory banks.

        Called once, before the optimizer is built and before any state is loaded.
        """

    def after_step(self, progress: Progress) -> None:
        """Update what follows the weights (an EMA teacher), after a step."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return optimizer parameter groups of this module; by default one with every parameter.

        A group may set `weight_decay`, `lr_scale` (factor on the run's rate) and `schedule`
        ("run" or "constant"). Every trained parameter belongs to exactly one group.
        """
        return [{"params": trainable([self])}]

    def epoch_started(self, progress: Progress, features: FeaturePass) -> None:
        """Prepare an epoch; `features()` encodes the whole source (clustering methods)."""


class FeaturePass(ABC):
    """A pass over the whole source with the backbone in evaluation mode."""

    @abstractmethod
    def __call__(self) -> Tensor:
        """Return the pooled features of every image, (N, channels[-1]) in float32 on the CPU.

        Where a signal asks the run to save and leave, it does so from within: call this before
        anything is changed.
        """


class Restorer(nn.Module, ABC):
    """Turn the pyramid of a distorted crop back into the undistorted one (L_res).

    Attributes:
        n_restored: Views it restores; the first ones of the batch.
    """

    n_restored: int = 1

    @abstractmethod
    def forward(self, pyramid: Pyramid) -> Tensor:
        """Return the restored crop, (B, C, *S) in [0, 1]; surplus at the far ends is cut off."""

    @abstractmethod
    def distance(self, restored: Tensor, view: View) -> Tensor:
        """Return L_res: how far `restored` is from `view.crop`, a scalar in float32."""

    def segments(self) -> list[nn.Module]:
        """Return parts that can be sharded and computed again one by one; each is called once."""
        return []


class Adversary(nn.Module, ABC):
    """A critic that judges how real an image looks (L_adv).

    Attributes:
        conditional: Whether the critic also sees the distorted image.
    """

    conditional: bool = False

    @abstractmethod
    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return scores (B, 1, *S'), one a patch; `condition` is the distorted image or None."""

    @abstractmethod
    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return what the critic minimises, from its scores of real and of restored images."""

    @abstractmethod
    def generator_loss(self, fake: Tensor) -> Tensor:
        """Return what backbone and decoder minimise (L_adv), from the scores of restored images."""

    def penalty(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor | None:
        """Return a penalty on the critic itself (a gradient penalty), or None."""
        return None


class Distortion(nn.Module, ABC):
    """One operation of T(.), batched: (B, C, *S) -> (B, C, *S), random numbers from `draws` alone.

    The engine applies it to the images that the options' `p` picks, by the slot "p" of its draws;
    use other slots. The same `draws` give the same decisions, so `box` and `label` can say
    afterwards what `forward` did.

    Attributes:
        mirrors: Whether all that it does is to mirror axes, those whose edges `box` swaps. At the
            front of `views.geometry` that costs nothing: crops are cut that way, in the workers.
    """

    mirrors: bool = False

    @abstractmethod
    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return distorted images; never writes into `images`."""

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what distorts each image by itself, where that is faster on a CPU than batches.

        Same law, same decisions and, to rounding, same pixels as `forward`. An image then goes
        through all operations while it is in the processor's cache.

        Args:
            draws: Of the images that are distorted.
            shape: (C, *S), of each of them.

        Returns:
            One for each image, or None: only batches are distorted.
        """
        return None

    def box(self, box: Tensor, draws: Draws) -> Tensor:
        """Return where the crops lie after it, (B, len(S), 2); see `View.box`."""
        return box

    def label(self, draws: Draws) -> Tensor | None:
        """Return the label (B,) a label-producing distortion made, or None.

        Label 0 stands for an image left as it is: the engine gives it to those that `p` passes by.
        """
        return None


@dataclass(frozen=True)
class Blocks:
    """Which consecutive images of a source are cheap to read together.

    Attributes:
        sizes: Images of one block after the other, (n,); they sum to all.
        together: Blocks whose images are mixed; an epoch reads no others at the same time.
    """

    sizes: np.ndarray
    together: int


class Source(ABC):
    """Images by position: 0 <= index < len(source). Read in worker processes, so it must pickle.

    Attributes:
        labels: One integer per image for probes, or None. Never used in pretraining.
        words: One pseudo-class per image (a visual word) that becomes `Batch.label`, or None.
        patients: One integer per image, the same for images of one patient, -1 of nobody, or None.
        classes: What the labels are called, by their number, or None.
        blocks: Which images to read together, where reading them at random is dear, or None.
        reading: The `window` and `spacing` that files were read by when they were prepared, where
            options of the source no longer say so: weights carry them.
    """

    labels: np.ndarray | None = None
    words: np.ndarray | None = None
    patients: np.ndarray | None = None
    classes: list[str] | None = None
    blocks: Blocks | None = None
    reading: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, index: int) -> Image:
        """Read one image.

        Raises:
            DataError: The image cannot be read; the message says why, without patient data.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what to call an image in a message."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of what the source offers; a resumed run refuses another one."""

    def digest(self, index: int) -> int | None:
        """Return a number of the image's file or files, by `dira_core.digests`, or None.

        Two images with the same number are the same image, whatever they are called.
        """
        return None

    def there(self, index: int) -> bool:
        """Say whether the image's file or files exist, without opening them."""
        return True


class Tracker(ABC):
    """Somewhere metrics go, beside metrics.jsonl. Its failure never stops a run."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:  # noqa: B027
        """Take pictures, (H, W) or (H, W, 3) uint8, by name."""

    def close(self) -> None:  # noqa: B027
        """Write out what is held back."""


def trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of modules that ask for a gradient."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]
