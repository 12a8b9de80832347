"""From a recipe to live parts: source, trio, players."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch._functorch import config as functorch_config

from dira_core.components import Choice, Kind
from dira_core.contracts import backbone_flaw, count_flaw, demand, source_flaw
from dira_core.distributed import world_size
from dira_core.donor import Donor
from dira_core.errors import RecipeError
from dira_core.nn.recompute import recompute
from dira_core.nn.small_maps import for_small_maps
from dira_core.nn.sync_norm import synchronise
from dira_core.optim import build_optimizer
from dira_core.parallel import Sharded, chosen_strategy, wrapped
from dira_core.players import CriticPlayer, ModelPlayer, Player
from dira_core.plugins import installed, make
from dira_core.precision import Precision
from dira_core.recipe import Recipe
from dira_core.roles import Adversary, Backbone, Discriminator, Restorer, Source, Tracker, trainable
from dira_core.settings import Settings, Train
from dira_core.trio import Model, Trio
from dira_core.view_options import sides_of


def axes(recipe: Recipe) -> int:
    """Return the number of spatial axes of the recipe's data, checked against its components.

    A source may offer images and volumes: then the backbone decides, and what else is chosen.

    Raises:
        RecipeError: A component does not work on that many axes, or there are more or fewer sides.
    """
    left = installed().find("source", recipe.data.name).dims
    chosen: list[tuple[Kind, Choice | None]] = [
        ("backbone", recipe.backbone),
        ("discriminator", recipe.discriminator),
        ("restorer", recipe.restorer),
        ("adversary", recipe.adversary),
    ]
    listed = [recipe.views.geometry, recipe.views.appearance, recipe.views.distort]
    for view in recipe.views.each:
        listed += [view.geometry or [], view.appearance or [], view.distort or []]
    chosen += [("distortion", choice) for choices in listed for choice in choices]
    for kind, choice in chosen:
        if choice is None:
            continue
        works = installed().find(kind, choice.name).dims
        if not set(left) & set(works):
            raise RecipeError(
                f"{kind} {choice.name!r} does not work on {left[0]}-D images such as those of "
                f"{recipe.data.name!r}: choose another (`dira plugins` shows the axes of each)"
            )
        left = tuple(dims for dims in left if dims in works)
    size = recipe.views.size
    dims = len(size) if isinstance(size, tuple) and len(size) in left else left[0]
    sides_of(size, dims)
    return dims


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw initial weights from (seed, name) alone, so that adding a role changes no other's."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
        yield


def build_source(recipe: Recipe) -> Source:
    """Build the source of images.

    Raises:
        PluginError: What it says of its images does not fit them.
    """
    source: Source = make("source", recipe.data, wanted=Source)
    demand(source, source_flaw(source))
    return source


def build_trio(recipe: Recipe, backbone: Backbone | None = None) -> Trio:
    """Build backbone and roles on the CPU; initial weights depend on the recipe's seed and init.

    Args:
        recipe: Names them.
        backbone: One of your own, instead of the recipe's.

    Raises:
        DiraError: A component cannot be built, or `init` has no weights for the backbone.
    """
    dims, channels, seed = axes(recipe), recipe.views.channels, recipe.seed
    if backbone is None:
        with seeded(seed, "backbone"):
            backbone = made_backbone(recipe.backbone, channels, dims)
    donor = None if recipe.init is None else Donor(recipe.init, recipe.backbone.name)
    if donor is not None:
        donor.give_backbone(backbone)  # before a role copies it for its teacher
    trio = Trio(backbone, donor=donor)
    if recipe.discriminator is not None:
        with seeded(seed, "discriminator"):
            discriminator: Discriminator = make(
                "discriminator", recipe.discriminator, backbone, wanted=Discriminator
            )
        demand(discriminator, count_flaw("n_views", discriminator.n_views))
        trio.discriminator = discriminator
    if recipe.restorer is not None:
        with seeded(seed, "restorer"):
            restorer: Restorer = make("restorer", recipe.restorer, backbone, wanted=Restorer)
        demand(restorer, count_flaw("n_restored", restorer.n_restored))
        if donor is not None:
            donor.give_restorer(restorer)
        trio.restorer = restorer
    if recipe.adversary is not None:
        with seeded(seed, "adversary"):
            adversary: Adversary = make(
                "adversary", recipe.adversary, channels, dims, wanted=Adversary
            )
        trio.adversary = adversary
    return trio


def made_backbone(choice: Choice, channels: int, dims: int) -> Backbone:
    """Build a backbone for images with so many channels and axes.

    Raises:
        PluginError: It cannot be built, or does not say what it is.
    """
    backbone: Backbone = make("backbone", choice, channels, dims, wanted=Backbone)
    demand(backbone, backbone_flaw(backbone, channels, dims))
    return backbone


def prepare(trio: Trio, images: int, seed: int) -> None:
    """Let the Discriminator make what depends on the number of images: queues, memory banks."""
    if trio.discriminator is not None:
        with seeded(seed, "prepare"):
            trio.discriminator.prepare(images)


def build_players(trio: Trio, settings: Settings, precision: Precision) -> list[Player]:
    """Move a trio to its device and memory layout, share it with other processes, make players.

    Raises:
        RecipeError: The trio has nothing to train, or a batch is too small for it.
    """
    trio.check()
    train, device = settings.train, precision.device
    strategy = chosen_strategy(train.strategy)
    model = Model(trio, settings.views.discriminator_sees)
    place(model, device, channels_last=train.channels_last and not isinstance(strategy, Sharded))
    adapt([trio.backbone, *([trio.restorer] if trio.restorer else [])], settings)
    check_norms(model, trio.backbone, settings)
    if train.sync_norm:
        synchronise(model, device)
    shared = wrapped(model.train(), strategy)
    batch = train.batch_size * train.accumulate * world_size()
    optimizer = build_optimizer(model.param_groups(), settings.optimizer, batch)
    adversary = trio.adversary
    if adversary is None:
        return [ModelPlayer(shared, optimizer, settings.weights, precision)]
    place(adversary, device, channels_last=train.channels_last)
    if train.sync_norm:
        synchronise(adversary, device)
    critic = wrapped(adversary.train(), chosen_strategy("ddp"))  # too small for shards
    groups = [{"params": trainable([adversary])}]
    critic_optimizer = build_optimizer(groups, settings.critic_optimizer, batch)
    return [
        ModelPlayer(shared, optimizer, settings.weights, precision, critic),
        CriticPlayer(critic, critic_optimizer),
    ]


def check_norms(model: nn.Module, backbone: Backbone, settings: Settings) -> None:
    """Raise a RecipeError where a batch norm would see one number a channel."""
    if rows_of_norms(model, settings.train) == 1:
        raise RecipeError(
            "a batch norm of embeddings needs at least 2 images a process, got 1: choose a larger "
            "--batch-size, or --set train.sync_norm=true with several processes"
        )
    side = max(sides_of(settings.views.size, backbone.dims))
    one_cell = settings.train.batch_size == 1 and side <= max(backbone.strides)
    if one_cell and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules()):
        raise RecipeError(
            f"a batch norm of one image whose deepest map is a single cell ({side} px by stride "
            f"{max(backbone.strides)}) has nothing to average: choose a larger --batch-size or "
            "--size"
        )


def rows_of_norms(model: nn.Module, train: Train) -> int | None:
    """Return how many images a batch norm of vectors sees at once, or None without any."""
    if not any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        return None
    return train.batch_size * (world_size() if train.sync_norm else 1)


def adapt(parts: Sequence[Backbone | Restorer], settings: Settings) -> None:
    """Let networks forget activations, and compile them, as the recipe says."""
    for part in parts:
        if settings.train.recompute:
            recompute(part.segments())
        if settings.train.compile:
            # else a graph can be gone through once: gradients of single objectives go first
            functorch_config.donated_buffer = False
            part.compile()


def repeatable() -> None:
    """Let torch choose rules that give the same bits every time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling what is about to be written anyway costs a tenth of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def place(module: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    """Move a module to a device, its convolution weights in channels-last order if asked.

    On a CPU its convolutions learn the quicker way with small maps.
    """
    module.to(device)
    if device.type == "cpu":
        for_small_maps(module)
    if channels_last:
        for parameter in module.parameters():
            if parameter.dim() in (4, 5):
                # not contiguous(): one input channel already counts as such, and slows what follows
                parameter.data = parameter.data.to(memory_format=layout(parameter.dim()), copy=True)


def layout(dim: int) -> torch.memory_format:
    """Return the channels-last format of a tensor of `dim` axes (4 or 5)."""
    return torch.channels_last if dim == 4 else torch.channels_last_3d


def build_trackers(settings: Settings, folder: Path) -> list[Tracker]:
    """Build the trackers of a run."""
    return [make("tracker", choice, folder, wanted=Tracker) for choice in settings.log.trackers]
