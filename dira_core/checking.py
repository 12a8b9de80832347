"""For plugin authors: does a component keep its contract? Behind `dira plugins check`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from dira_core.components import Component, Kind, Options
from dira_core.contracts import (
    backbone_flaw,
    count_flaw,
    groups_flaw,
    image_flaw,
    objective_flaw,
    pyramid_flaw,
    scalar_flaw,
    shape_flaw,
    source_flaw,
)
from dira_core.draws import Draws
from dira_core.encodings import Encodings
from dira_core.loading import said
from dira_core.plugins import installed
from dira_core.problems import explain
from dira_core.roles import (
    Adversary,
    Backbone,
    Discriminator,
    Distortion,
    Restorer,
    Source,
    Tracker,
)
from dira_core.targets import Masks, target_flaw
from dira_core.tiny import TinyBackbone, tiny_batch
from dira_core.trio import cut
from dira_core.types import Progress

Check = tuple[str, str | None]
"""What was checked, and what is wrong with it, or None."""


def check(kind: Kind, name: str, /, **options: Any) -> list[Check]:
    """Check one installed component against its contract.

    Args:
        kind: Of the component.
        name: What a recipe calls it.
        options: Those that have no default; without them it cannot be built, and is not checked.

    Raises:
        RecipeError: Nothing is called that, or it has no such options.
        PluginError: Its plugin is broken.
    """
    component = installed().find(kind, name)
    needed = [key for key, f in component.options.model_fields.items() if f.is_required()]
    if missing := [key for key in needed if key not in options]:
        needs = " and ".join(missing)
        return [(f"not checked: {needs} must be given (--set {missing[0]}=...)", None)]
    try:
        chosen = component.options.model_validate(options)
    except ValidationError as error:
        raise explain(error, component.options, options, {}) from error
    results: list[Check] = []
    for title, attempt in _checks(kind, component, chosen):
        torch.manual_seed(0)
        try:
            attempt()
            results.append((title, None))
        except Exception as error:
            results.append((title, said(error)))
    return results


def _checks(
    kind: Kind, component: Component, options: Options
) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "options survive JSON", partial(_round_trip, options)
    if kind in _IN_AXES:
        for dims in component.dims:
            yield f"contract in {dims}-D", partial(_IN_AXES[kind], component, options, dims)
    elif kind in _OTHERS:
        yield "contract", partial(_OTHERS[kind], component, options)


def _round_trip(options: Options) -> None:
    again = type(options).model_validate_json(options.model_dump_json())
    _must(again == options, "options read back from JSON differ")


def _must(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _sound(flaw: str | None) -> None:
    _must(flaw is None, str(flaw))


def _built(component: Component, wanted: type, *parts: Any) -> Any:
    """Build a component; an error if something else than a `wanted` comes out."""
    part = component.build(*parts)
    _must(isinstance(part, wanted), f"build returned {part!r:.60}, which is no {wanted.__name__}")
    return part


def half() -> torch.autocast:
    """Return the context a run calls roles in: losses must see to their float32 themselves."""
    return torch.autocast("cpu", torch.bfloat16)


def _discriminator(component: Component, options: Options, dims: int) -> None:
    backbone = TinyBackbone(dims=dims)
    role: Discriminator = _built(component, Discriminator, options, backbone)
    _sound(count_flaw("n_views", role.n_views))
    batch = tiny_batch(n_views=role.n_views, size=[16] * dims)
    role.prepare(len(batch.index))
    with half():
        role(Encodings(backbone, batch))  # a queue is empty before, and teaches nothing
        objective = role(Encodings(backbone, batch))
    _sound(objective_flaw(objective))
    _must(objective.loss.dtype == torch.float32, "the loss is not float32: see `in_float32`")
    _must(bool(objective.loss.isfinite()), "the loss is not finite")
    torch.autograd.backward(objective.loss)
    grads = [p.grad for p in backbone.parameters()]
    _must(any(g is not None and g.abs().sum() > 0 for g in grads), "no gradient at the backbone")
    _sound(groups_flaw(role))
    role.after_step(Progress(1, 10, 0, 1))
    role.load_state_dict(role.state_dict())
    role.eval()
    before = {name: value.clone() for name, value in role.state_dict().items()}
    with half():
        role(Encodings(backbone, batch))
    same = all(torch.equal(value, before[name]) for name, value in role.state_dict().items())
    _must(same, "evaluation changed its state: write buffers only where `self.training`")


def _restorer(component: Component, options: Options, dims: int) -> None:
    backbone = TinyBackbone(dims=dims)
    role: Restorer = _built(component, Restorer, options, backbone)
    _sound(count_flaw("n_restored", role.n_restored))
    # without instructions for it, bf16 takes a processor a hundred times as long
    side = 16 if dims == 2 else 8
    view = tiny_batch(2, size=[side] * dims).views[0]
    with half():
        restored = cut(role(backbone(view.image)), view.crop.shape)
    _sound(shape_flaw("forward", restored, view.crop.shape))
    _must(bool(((restored >= 0) & (restored <= 1)).all()), "restored images leave [0, 1]")
    with half():
        distance = role.distance(restored, view)
    _sound(scalar_flaw("distance()", distance))
    _must(distance.dtype == torch.float32, "distance() is not float32: see `in_float32`")
    torch.autograd.backward(distance)
    _must(all(p.grad is not None for p in role.parameters()), "a parameter gets no gradient")


def _adversary(component: Component, options: Options, dims: int) -> None:
    role: Adversary = _built(component, Adversary, options, 1, dims)
    # without instructions for it, bf16 takes a processor a hundred times as long
    side = 32 if dims == 2 else 16
    view = tiny_batch(2, size=[side] * dims).views[0]
    condition = view.image if role.conditional else None
    fake = view.image.clone().requires_grad_()
    with half():
        scores = role(fake, condition)
        critic = role.critic_loss(role(view.crop, condition), scores)
        generator = role.generator_loss(scores)
    _must(scores.shape[:2] == (len(fake), 1), f"scores are {scores.shape}, not (B, 1, ...)")
    for what, loss in (("critic_loss()", critic), ("generator_loss()", generator)):
        _sound(scalar_flaw(what, loss))
        _must(loss.dtype == torch.float32, f"{what} is not float32: see `in_float32`")
    torch.autograd.backward(generator)
    _must(fake.grad is not None and bool(fake.grad.abs().sum() > 0), "no gradient at the image")


def _distortion(component: Component, options: Options, dims: int) -> None:
    role: Distortion = _built(component, Distortion, options)
    images = tiny_batch(size=[32] * dims).views[0].crop
    before = images.clone()
    draws = Draws(torch.arange(len(images)), seed=0)
    once, twice = role(images, draws), role(images, draws)
    _must(bool((images == before).all()), "the input was written to")
    _sound(shape_flaw("forward", once, images.shape))
    _must(once.dtype == images.dtype, f"the dtype became {once.dtype}")
    _must(bool(once.isfinite().all()), "the result is not finite")
    _must(
        torch.equal(once, twice), "the same draws give another result: take randomness from draws"
    )
    alone = role(images[2:3], draws.select(torch.tensor([2])))
    _must(torch.allclose(alone, once[2:3], atol=1e-5), "an image's result depends on its batch")
    changes = role.by_image(draws, images.shape[1:])
    _must(changes is None or len(changes) == len(images), "by_image() makes more or fewer changes")
    for change, image, expected in zip(changes or (), images.numpy(), once, strict=False):
        changed = torch.from_numpy(np.ascontiguousarray(change(image.copy())))
        _must(torch.allclose(changed, expected, atol=1e-5), "by_image() makes another image")
    if role.mirrors:
        box = role.box(torch.tensor([[0, 32]] * dims).repeat(len(images), 1, 1), draws)
        for image, result, edges in zip(images, once, box.tolist(), strict=True):
            axes = [axis for axis, (first, last) in enumerate(edges, start=1) if first > last]
            _must(torch.equal(result, image.flip(axes)), "it does not mirror what `box` says")


def _backbone(component: Component, options: Options, dims: int) -> None:
    role: Backbone = _built(component, Backbone, options, 1, dims)
    _sound(backbone_flaw(role, 1, dims))
    pyramid = role(torch.rand(2, 1, *[64] * dims))
    _sound(pyramid_flaw(role, pyramid))
    for level, channels, stride in zip(pyramid, role.channels, role.strides, strict=True):
        expected = (2, channels, *[-(-64 // stride)] * dims)
        _must(tuple(level.shape) == expected, f"a map is {tuple(level.shape)}, not {expected}")


def _source(component: Component, options: Options) -> None:
    role: Source = _built(component, Source, options)
    _must(len(role) > 0, "it has no image")
    _sound(source_flaw(role))
    _must(role.fingerprint() == role.fingerprint(), "fingerprint() is another one each time")
    ForkingPickler.dumps(role)  # worker processes get it so; it raises where they could not
    for index in (0, len(role) - 1):
        image = role.read(index)
        _sound(image_flaw(image))
        _must(bool(role.name(index)), "name() is empty")
        same = np.array_equal(image.pixels, role.read(index).pixels, equal_nan=True)
        _must(same, "read() returned another image the second time")


def _target(component: Component, options: Options) -> None:
    target = component.build(options, "auto")
    _sound(target_flaw(target))
    _sound(image_flaw(target.source.read(0)))
    _must(target.fingerprint() == target.fingerprint(), "fingerprint() is another one each time")
    if isinstance(target, Masks):
        masks, known = target.mask(0)
        wanted = (len(target.classes), *known.shape)
        _must(masks.shape == wanted, f"masks are {masks.shape}, not {wanted}")
        kinds = masks.dtype, known.dtype
        _must(kinds == (bool, bool), f"masks are {kinds}, not bool")


def _tracker(component: Component, options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        role: Tracker = _built(component, Tracker, options, Path(folder))
        role.log(1, {"losses/total": 0.5})
        role.close()


_IN_AXES: dict[str, Callable[[Component, Options, int], None]] = {
    "discriminator": _discriminator,
    "restorer": _restorer,
    "adversary": _adversary,
    "distortion": _distortion,
    "backbone": _backbone,
}

_OTHERS: dict[str, Callable[[Component, Options], None]] = {
    "source": _source,
    "target": _target,
    "tracker": _tracker,
}
