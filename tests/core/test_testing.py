"""The checks plugin authors run pass every installed component and catch the usual mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from distributions import offered
from kit import Dira

from dira_core.components import Kind
from dira_core.errors import PluginError, RecipeError
from dira_core.plugins import installed
from dira_core.targets import build_target
from dira_core.testing import TinySource, check, choice, tiny_batch

KINDS: tuple[Kind, ...] = (
    "discriminator",
    "restorer",
    "adversary",
    "distortion",
    "backbone",
    "tracker",
)
EVERY = [(kind, name) for kind in KINDS for name in installed().names(kind)]

OPTIONS: dict[str, dict[str, Any]] = {
    "one-of": {"of": ["inner-cutout", "patch-swap"], "weights": [0.5, 0.2]},
    "barlow": {"dim": 512},  # 8192 without bf16 instructions: half a minute
}

ZOO = """
import numpy as np
import torch
from pydantic import Field
from torch import nn
from dira_core import (
    Adversary, Backbone, Component, Discriminator, Distortion, DistortionOptions, Image, Labels,
    Masks, Objective, Options, Restorer, Tracker, hookimpl,
)
from dira_core.targets import build_target
from dira_core.testing import TinySource

class Head(Discriminator):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 8)
        self.spare = nn.Linear(8, 8)

    def z(self, encodings):
        return [self.spare(self.head(encodings[view].pooled)) for view in range(2)]

    def forward(self, encodings):
        a, b = self.z(encodings)
        return Objective((a.float() - b.float()).square().mean(), embedding=a)

class Vector(Head):
    def forward(self, encodings):
        a, b = self.z(encodings)
        return Objective((a.float() - b.float()).square().mean(1), embedding=a)

class Idle(Head):
    n_views = 0

class Half(Head):
    def forward(self, encodings):
        a, b = self.z(encodings)
        return Objective((a @ b.T).mean(), embedding=a)

class Endless(Head):
    def forward(self, encodings):
        a, _ = self.z(encodings)
        return Objective((a.float() - a.float()).sum() / 0, embedding=a)

class Blind(Head):
    def forward(self, encodings):
        a = self.spare(self.head(encodings[0].pooled.detach()))
        return Objective(a.float().square().mean(), embedding=a)

class Forgetful(Head):
    def param_groups(self):
        return [{"params": list(self.head.parameters())}]

class Double(Head):
    def param_groups(self):
        return [{"params": list(self.parameters())}, {"params": list(self.spare.parameters())}]

class Bare(Head):
    def forward(self, encodings):
        return super().forward(encodings).loss

class Told(Head):
    def forward(self, encodings):
        return Objective(super().forward(encodings).loss, {"half": 0.5})

class Averaged(Head):
    def forward(self, encodings):
        return Objective(super().forward(encodings).loss, embedding=torch.zeros(3))

class Quick(Head):
    def param_groups(self):
        return [{"params": list(self.parameters()), "lr_scal": 2.0}]

class Flat(Head):
    def param_groups(self):
        return list(self.parameters())

class Wordy(Head):
    def forward(self, encodings):
        raise ValueError("two\\nlines")

class Up(Restorer):
    def __init__(self, scale=8, beyond=False, spare=False, half=False):
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 1, scale, scale)
        self.spare = nn.Linear(2, 2) if spare else None
        self.beyond, self.half = beyond, half

    def forward(self, pyramid):
        restored = self.up(pyramid[-1])
        return restored + 2 if self.beyond else restored.sigmoid()

    def distance(self, restored, view):
        error = restored - view.crop
        return error.square().mean() if not self.half else error.bfloat16().square().mean()

class Larger(Up):
    def forward(self, pyramid):
        return nn.functional.pad(super().forward(pyramid), (0, 3, 0, 3))

class Critic(Adversary):
    def __init__(self, channels=1, blind=False, half=False):
        super().__init__()
        self.net = nn.Conv2d(1, channels, 4, 4)
        self.blind, self.half = blind, half

    def forward(self, image, condition=None):
        return self.net(image.detach() if self.blind else image)

    def critic_loss(self, real, fake):
        return self.number((real.float() - 1).square().mean() + fake.float().square().mean())

    def generator_loss(self, fake):
        return self.number((fake.float() - 1).square().mean())

    def number(self, loss):
        return loss.bfloat16() if self.half else loss

class Twist(Distortion):
    def __init__(self, what):
        super().__init__()
        self.what = what
        self.mirrors = what == "mirrors"

    def forward(self, images, draws):
        if self.what == "mirrors":
            return images.flip(-1)
        if self.what == "writes":
            return images.mul_(0.5)
        if self.what == "random":
            return images * torch.rand(len(images), 1, 1, 1)
        if self.what == "batch":
            return images - images.mean()
        if self.what == "shape":
            return images[..., 1:]
        if self.what == "dtype":
            return images.double()
        if self.what in ("other-changes", "fewer-changes"):
            return images * 0.5
        return images / 0

    def by_image(self, draws, shape):
        if self.what == "other-changes":
            return [lambda image: image * 0.6] * draws.batch_size
        return [] if self.what == "fewer-changes" else None

class Stack(Backbone):
    in_channels, dims = 1, 2

    def __init__(self, channels, strides):
        super().__init__()
        self.channels, self.strides = channels, strides
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)

    def forward(self, images):
        return [self.conv(images)]

class Deaf(Tracker):
    def log(self, step, metrics):
        raise RuntimeError("no network")

class Few(TinySource):
    read_as = staticmethod(lambda image, index: image)

    def read(self, index):
        return self.read_as(super().read(index), index)

class Grey(Few):
    read_as = staticmethod(lambda image, index: Image(image.pixels[0], image.window))

class Deep(Few):
    read_as = staticmethod(lambda image, index: Image(image.pixels * 1.0, image.window))

class Open(Few):
    read_as = staticmethod(lambda image, index: Image(image.pixels, (0.0, float("inf"))))

class Array(Few):
    read_as = staticmethod(lambda image, index: image.pixels)

class Noisy(Few):
    def read(self, index):
        noise = np.random.default_rng().integers(0, 255, (1, 8, 8), np.uint8)
        return Image(noise, (0.0, 255.0))

class Empty(Few):
    def __len__(self):
        return 0

class Listed(Few):
    def __init__(self):
        super().__init__()
        self.labels = [0] * len(self)

class Locked(Few):
    def __init__(self):
        super().__init__()
        self.opened = lambda: None

class Nameless(Few):
    def name(self, index):
        return ""

class Fickle(Few):
    def fingerprint(self):
        self.asked = getattr(self, "asked", 0) + 1
        return str(self.asked)

def task(**wrong):
    source = TinySource(4)
    floats = np.array([[1, 0], [0, 1], [np.nan, np.nan], [0.5, 0]])
    known = {"classes": ["a", "b"], "split": None, "patients": [""] * 4, "labels": floats}
    return Labels(source, **{**known, "exclusive": False, **wrong})

class Flatly(Masks):
    def mask(self, index):
        return np.zeros((24, 24), bool), np.ones((24, 24), bool)

class Counted(Flatly):
    def mask(self, index):
        return np.zeros((1, 24, 24), np.uint8), np.ones((24, 24), bool)

class Right(Flatly):
    def mask(self, index):
        return np.zeros((1, 24, 24), bool), np.ones((24, 24), bool)

def masked(kind):
    return kind(TinySource(4), ["a"], None, [""] * 4)

class Odd(Options):
    number: float = Field(1.0, exclude=True)
    twice: float = 2.0

class Lossy(Options):
    word: str = "a"

    def model_dump_json(self, **given):
        return '{"word": "b"}'

def of(kind, classes):
    for name, make in classes.items():
        yield Component(name, Options, lambda *parts, make=make: make(), summary="bad", dims=(2,))

@hookimpl
def dira_discriminators():
    yield from of("d", {"good-head": Head, "vector": Vector, "half-loss": Half, "endless": Endless,
                        "idle": Idle, "blind": Blind, "forgetful": Forgetful, "double": Double,
                        "bare": Bare, "told": Told, "averaged": Averaged, "quick": Quick,
                        "flat": Flat, "wordy": Wordy, "unbuilt": lambda: None,
                        "class": lambda: Head})
    yield Component("lossy", Lossy, lambda *parts: Head(), summary="bad", dims=(2,))

@hookimpl
def dira_restorers():
    yield from of("r", {"good-up": Up, "larger": Larger, "small": lambda: Up(4),
                        "beyond": lambda: Up(beyond=True),
                        "idle": lambda: Up(spare=True), "half-distance": lambda: Up(half=True)})

@hookimpl
def dira_adversaries():
    yield from of("a", {"good-critic": Critic, "wide": lambda: Critic(2),
                        "blind-critic": lambda: Critic(blind=True),
                        "half-critic": lambda: Critic(half=True)})

@hookimpl
def dira_distortions():
    for what in ("writes", "random", "batch", "shape", "dtype", "infinite",
                 "other-changes", "fewer-changes", "mirrors"):
        yield Component(what, DistortionOptions, lambda o, w=what: Twist(w), summary="b", dims=(2,))

@hookimpl
def dira_backbones():
    yield from of("b", {"good-stack": lambda: Stack((4,), (2,)),
                        "wrong-stride": lambda: Stack((4,), (4,)),
                        "wrong-channels": lambda: Stack((8,), (2,)),
                        "wrong-number": lambda: Stack((4, 4), (2, 4))})

@hookimpl
def dira_sources():
    yield from of("s", {"good-source": Few, "grey": Grey, "deep": Deep, "open": Open,
                        "array": Array, "noisy": Noisy, "empty": Empty, "listed": Listed,
                        "locked": Locked, "nameless": Nameless, "fickle": Fickle})

@hookimpl
def dira_targets():
    labels = np.zeros((4, 2))
    yield from of("l", {"good-labels": task, "good-masks": lambda: masked(Right),
                        "source-only": lambda: TinySource(4),
                        "short": lambda: task(patients=["p"] * 3),
                        "long": lambda: task(split=["train"] * 5),
                        "one-label": lambda: task(labels=labels[:, 0]),
                        "whole-numbers": lambda: task(labels=labels.astype(int)),
                        "percents": lambda: task(labels=labels + 50),
                        "scores-c": lambda: task(scored=["c"]),
                        "flat-masks": lambda: masked(Flatly),
                        "number-masks": lambda: masked(Counted)})

@hookimpl
def dira_trackers():
    yield from of("t", {"deaf": Deaf})
"""

CAUGHT: dict[tuple[Kind, str], str] = {
    ("discriminator", "vector"): "not a scalar",
    ("discriminator", "idle"): "n_views is 0",
    ("discriminator", "half-loss"): "the loss is not float32",
    ("discriminator", "endless"): "the loss is not finite",
    ("discriminator", "blind"): "no gradient at the backbone",
    ("discriminator", "forgetful"): "every parameter exactly once",
    ("discriminator", "double"): "every parameter exactly once",
    ("discriminator", "bare"): "forward() returned Tensor, not an Objective",
    ("discriminator", "told"): "the metric 'half' is no tensor, but float",
    ("discriminator", "averaged"): "the embedding is (3,), not (B, D)",
    ("discriminator", "quick"): "unknown key 'lr_scal' (known: params, weight_decay, lr_scale",
    ("discriminator", "flat"): "param_groups() holds (8, 16), not tables",
    ("discriminator", "wordy"): "ValueError: two",
    ("discriminator", "unbuilt"): "build returned None, which is no Discriminator",
    ("discriminator", "class"): "which is no Discriminator",
    ("discriminator", "lossy"): "read back from JSON differ",
    ("restorer", "small"): "forward() returned (2, 1, 8, 8), not (2, 1, 16, 16)",
    ("restorer", "beyond"): "leave [0, 1]",
    ("restorer", "idle"): "a parameter gets no gradient",
    ("restorer", "half-distance"): "distance() is not float32",
    ("adversary", "wide"): "not (B, 1, ...)",
    ("adversary", "blind-critic"): "no gradient at the image",
    ("adversary", "half-critic"): "critic_loss() is not float32",
    ("distortion", "writes"): "the input was written to",
    ("distortion", "other-changes"): "by_image() makes another image",
    ("distortion", "fewer-changes"): "by_image() makes more or fewer changes",
    ("distortion", "random"): "take randomness from draws",
    ("distortion", "batch"): "depends on its batch",
    ("distortion", "shape"): "forward() returned (4, 1, 32, 31), not (4, 1, 32, 32)",
    ("distortion", "dtype"): "the dtype became torch.float64",
    ("distortion", "infinite"): "not finite",
    ("distortion", "mirrors"): "does not mirror what `box` says",
    ("backbone", "wrong-stride"): "a map is",
    ("backbone", "wrong-channels"): "its `channels` [8]",
    ("backbone", "wrong-number"): "its `channels` [4, 4]",
    ("source", "grey"): "pixels that are uint8 (24, 24), not uint8, uint16 or float32 (C, *S)",
    ("source", "deep"): "pixels that are float64 (1, 24, 24)",
    ("source", "open"): "the window (0.0, inf)",
    ("source", "array"): "read() returned ndarray, not an Image",
    ("source", "noisy"): "another image the second time",
    ("source", "empty"): "no image",
    ("source", "listed"): "`labels` must be an array of 16 integers",
    ("source", "locked"): "pickle",
    ("source", "nameless"): "name() is empty",
    ("source", "fickle"): "fingerprint() is another one each time",
    ("target", "source-only"): "a TinySource, not Labels or Masks",
    ("target", "short"): "`patients` has 3 entries, its source 4 images",
    ("target", "long"): "`split` has 5 entries, its source 4 images",
    ("target", "one-label"): "`labels` are float64 (4,), not floats (4, 2)",
    ("target", "whole-numbers"): "`labels` are int64 (4, 2)",
    ("target", "percents"): "not all in [0, 1]",
    ("target", "scores-c"): "`scored` names something that is no class",
    ("target", "flat-masks"): "masks are (24, 24), not (1, 24, 24)",
    ("target", "number-masks"): "not bool",
    ("tracker", "deaf"): "no network",
}
GOOD: list[tuple[Kind, str]] = [
    ("discriminator", "good-head"),
    ("restorer", "good-up"),
    ("restorer", "larger"),
    ("adversary", "good-critic"),
    ("backbone", "good-stack"),
    ("source", "good-source"),
    ("target", "good-labels"),
    ("target", "good-masks"),
]


@pytest.fixture(scope="module")
def _zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with offered(tmp_path_factory.mktemp("site"), "zoo", ZOO):
        yield


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_installed_component_keeps_its_contract(kind: Kind, name: str) -> None:
    results = check(kind, name, **OPTIONS.get(name, {}))
    assert results
    assert [f"{title}: {wrong}" for title, wrong in results if wrong] == []
    assert not any("not checked" in title for title, _ in results)


@pytest.mark.parametrize("name", sorted({*installed().names("source")} - {"words"}))
def test_every_source_of_images_keeps_its_contract(name: str, tmp_path: Path, dira: Dira) -> None:
    (tmp_path / "folder").mkdir()
    for n in range(2):
        PIL.Image.linear_gradient("L").rotate(90 * n).save(tmp_path / f"folder/{n}.png")
    (tmp_path / "manifest").write_text("image\nfolder/0.png\nfolder/1.png\n")
    for verb, made in (("cache", "cache"), ("shard", "shards")):
        assert dira("data", verb, "folder", "--out", made)[0] == 0
    options = {} if name.startswith("phantom") else {"path": name}
    assert check("source", name, **options) == [
        ("options survive JSON", None),
        ("contract", None),
    ]


@pytest.mark.usefixtures("_zoo")
@pytest.mark.parametrize(("kind", "name"), CAUGHT)
def test_a_usual_mistake_is_caught_and_named(kind: Kind, name: str) -> None:
    wrong = [wrong for _, wrong in check(kind, name) if wrong is not None]
    assert len(wrong) == 1
    assert CAUGHT[kind, name] in wrong[0]
    assert "\n" not in wrong[0]


@pytest.mark.usefixtures("_zoo")
@pytest.mark.parametrize(("kind", "name"), GOOD)
def test_what_the_mistakes_were_made_of_is_sound(kind: Kind, name: str) -> None:
    assert [wrong for _, wrong in check(kind, name) if wrong is not None] == []


@pytest.mark.usefixtures("_zoo")
def test_a_transfer_refuses_what_is_no_labelled_task() -> None:
    with pytest.raises(PluginError, match="^target 'short': `patients` has 3 entries"):
        build_target(choice("target", "short"), "auto")


def test_options_that_a_component_has_not_are_refused_with_the_nearest(dira: Dira) -> None:
    code, _, err = dira("plugins", "check", "phantom", "--set", "sizes=3")
    assert (code, "did you mean 'size'" in err) == (2, True)
    code, out, _ = dira("plugins", "check", "phantom", "--set", "n=3")
    assert (code, out.count(": ok")) == (0, 2)


def test_a_component_that_needs_options_says_which_and_is_not_called_broken() -> None:
    assert check("distortion", "one-of") == [
        ("not checked: of and weights must be given (--set of=...)", None)
    ]


def test_an_unknown_component_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'unet'"):
        check("restorer", "unett")


def test_a_choice_by_hand_has_the_options_of_its_component() -> None:
    chosen = choice("distortion", "flip", p=0.25)
    assert (chosen.name, chosen.options.model_dump()["p"]) == ("flip", 0.25)


def test_tiny_parts_are_the_same_every_time_and_fit_each_other() -> None:
    first, again = tiny_batch(3, 2, 1, (8, 12)), tiny_batch(3, 2, 1, (8, 12))
    assert first.views[1].crop.shape == (3, 1, 8, 12)
    assert (first.views[1].image == again.views[1].image).all()
    assert (first.views[0].image != first.views[0].crop).any()
    source = TinySource(6, dims=3)
    assert source.read(5).pixels.shape == (1, 24, 24, 24)
    assert source.labels is not None
    bright = [source.read(i).pixels.mean() for i in range(6)]
    assert min(bright[1::2]) > max(bright[::2])
