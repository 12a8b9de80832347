"""A view depends on seed, epoch, image and view number alone; each operation touches its part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributions import offered
from parts import small_settings
from torch import Tensor

from dira_core.components import Choice, DistortionOptions
from dira_core.data.dataset import CropDataset, Crops, Request
from dira_core.data.loader import Loader
from dira_core.draws import Draws
from dira_core.errors import DataError, PluginError, RecipeError
from dira_core.operations import Operation, build_distortion, distort, mirrors
from dira_core.settings import Settings
from dira_core.testing import TinySource, choice
from dira_core.types import Batch, Image, View
from dira_core.views import ViewMaker

CPU = torch.device("cpu")

TURNS = """
import torch
from dira_core import Component, Distortion, DistortionOptions, hookimpl

class Turn(Distortion):
    def forward(self, images, draws):
        turned = [torch.rot90(i, int(k), (-2, -1)) for i, k in zip(images, self.label(draws))]
        return torch.stack(turned)

    def label(self, draws):
        return draws.integers("turns", 1, 4)

@hookimpl
def dira_distortions():
    yield Component("turn", DistortionOptions, lambda options: Turn(), summary="quarter turns")
"""

EVERYTHING: dict[str, Any] = {
    "geometry": [{"name": "flip", "p": 0.5}],
    "appearance": [{"name": "intensity-jitter", "p": 0.8}, {"name": "gaussian-blur", "p": 0.5}],
    "distort": [
        {
            "name": "one-of",
            "of": ["inner-cutout", "outer-cutout", "patch-swap"],
            "weights": [0.3, 0.1, 0.3],
        },
        {"name": "pixel-shuffle", "p": 0.5},
        {"name": "bezier", "p": 0.5},
        {"name": "noise-inpaint", "p": 0.5},
    ],
}


@pytest.fixture
def _turns(tmp_path: Path) -> Iterator[None]:
    """Install a distribution with a distortion that makes labels, beside all others."""
    with offered(tmp_path, "turns", TURNS):
        yield


def settings(views: dict[str, Any] | None = None, **changes: Any) -> Settings:
    return small_settings(views=EVERYTHING if views is None else views, **changes)


def images_of(view: View) -> tuple[Tensor, ...]:
    return view.crop, view.clean, view.image, view.box


def by_image(batches: list[Batch]) -> dict[int, list[Tensor]]:
    """Return everything made of each image, by its index."""
    found: dict[int, list[Tensor]] = {}
    for batch in batches:
        for row, index in enumerate(batch.index.tolist()):
            found[index] = [part[row] for view in batch.views for part in images_of(view)]
    return found


def made(chosen: Settings, start: int = 0, epoch: int = 1, salt: int = 0) -> list[Batch]:
    loader = Loader(TinySource(24), chosen, n_views=2)
    views = ViewMaker(chosen, CPU, 2)
    try:
        return [views(crops, epoch, salt) for crops in loader.batches(epoch, start, salt)]
    finally:
        loader.close()


def same_bits(a: dict[int, list[Tensor]], b: dict[int, list[Tensor]]) -> bool:
    return all(torch.equal(x, y) for i in a for x, y in zip(a[i], b[i], strict=True))


def crops_of(n: int = 8, size: int = 16, dims: int = 2) -> Crops:
    """Return random crops of n images whose boxes are all different."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((n, 1, *[size] * dims), generator=generator)
    box = torch.arange(n * dims * 2, dtype=torch.float32).view(n, 1, dims, 2)
    return Crops((pixels,), box, torch.arange(n))


def view_of(
    views: dict[str, Any], crops: Crops | None = None, epoch: int = 0, salt: int = 0
) -> View:
    crops = crops_of() if crops is None else crops
    empty: dict[str, Any] = {"geometry": [], "appearance": [], "distort": []}
    return ViewMaker(settings(empty | views), CPU, 1)(crops, epoch, salt).views[0]


def test_volumes_where_images_are_expected_are_refused_in_words() -> None:
    maker = ViewMaker(settings({}), CPU, 1, dims=2)
    assert maker(crops_of(), 0, 0).views[0].crop.shape == (8, 1, 16, 16)
    with pytest.raises(DataError, match="data are volumes .* works on 2 axes.*views.size 3 sides"):
        maker(crops_of(dims=3), 0, 0)
    with pytest.raises(DataError, match=r"are images .*data\.series=true"):
        ViewMaker(settings({}), CPU, 1, dims=3)(crops_of(), 0, 0)


@pytest.fixture(scope="module")
def usual() -> dict[int, list[Tensor]]:
    """Return the views of batches of 4, made without workers."""
    return by_image(made(settings()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on fewer cores
@pytest.mark.parametrize("workers", [1, 3])
def test_views_are_the_same_bits_for_any_number_of_workers(
    usual: dict[int, list[Tensor]], workers: int
) -> None:
    found = by_image(made(settings(loader={"workers": workers})))
    assert found.keys() == usual.keys()
    assert same_bits(found, usual)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 24])
def test_views_are_the_same_bits_in_batches_of_any_size(
    usual: dict[int, list[Tensor]], batch_size: int
) -> None:
    assert same_bits(by_image(made(settings(train={"batch_size": batch_size}))), usual)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_alone_gives_the_bits_it_gives_in_a_batch(
    channels: int, channels_last: bool
) -> None:
    views = EVERYTHING | {"channels": channels, "size": 64}
    chosen = settings(views, train={"channels_last": channels_last, "batch_size": 8})
    loader, maker = Loader(TinySource(24), chosen, n_views=2), ViewMaker(chosen, CPU, 2)
    whole = by_image([maker(loader.crops(range(8), 3), 3, 0)])
    alone = by_image([maker(loader.crops([i], 3), 3, 0) for i in range(8)])
    assert same_bits(alone, whole)


def test_views_after_a_resume_within_an_epoch_are_those_of_the_whole_epoch(
    usual: dict[int, list[Tensor]],
) -> None:
    rest = by_image(made(settings(), start=12))
    assert len(rest) == 12
    assert same_bits(rest, usual)


class OneDeeper(TinySource):
    """The same images, the last one with another window: its batch is cut as floats."""

    def read(self, index: int) -> Image:
        image = super().read(index)
        return image if index < len(self) - 1 else replace(image, window=(10.0, 200.0))


@pytest.mark.parametrize(
    "views", [EVERYTHING, {"geometry": ["patch-swap"]}, {"distort": ["rotate90"]}]
)
def test_bytes_give_the_bits_they_give_beside_an_image_that_is_cut_as_floats(
    views: dict[str, Any],
) -> None:
    chosen, every = settings(views), range(24)
    found = []
    for source in (TinySource(24), OneDeeper(24)):
        crops = CropDataset(source, chosen, 2).crops(Request(every, epoch=1))
        found.append(by_image([ViewMaker(chosen, CPU, 2)(crops, 1, 0)]))
        found[-1].pop(23)
        assert crops.pixels[0].dtype == (torch.uint8 if len(found) == 1 else torch.float32)
    assert same_bits(*found)
    levels = found[0][0][0] * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("other", [{"epoch": 2}, {"salt": 1}])
def test_another_epoch_or_salt_gives_other_views(
    usual: dict[int, list[Tensor]], other: dict[str, int]
) -> None:
    found = by_image(made(settings(), **other))
    assert not any(torch.equal(found[i][2], usual[i][2]) for i in usual)


def test_the_salt_and_the_view_number_change_the_operations_and_not_only_the_crop() -> None:
    jitter: dict[str, Any] = {"geometry": [], "appearance": ["intensity-jitter"], "distort": []}
    crops = crops_of()
    twice = replace(crops, pixels=crops.pixels * 2, box=crops.box.repeat(1, 2, 1, 1))
    first, second = ViewMaker(settings(jitter), CPU, 2)(twice, 0, 0).views
    assert torch.equal(first.crop, second.crop)
    assert not torch.equal(first.clean, second.clean)
    assert not torch.equal(view_of(jitter).clean, view_of(jitter, salt=1).clean)
    assert not torch.equal(view_of(jitter).clean, view_of(jitter, epoch=1).clean)


def shown(geometry: list[Any]) -> View:
    """Return a view of each of 64 images that nothing but geometry changes."""
    views = {"geometry": geometry, "appearance": [], "distort": []}
    chosen = settings(views, train={"batch_size": 64})
    loader = Loader(TinySource(64), chosen, n_views=1)
    return ViewMaker(chosen, CPU, 1)(loader.crops(range(64), 0), 0, 0).views[0]


FLIP = {"name": "flip", "p": 0.5}
FLIPS = {"name": "one-of", "of": ["flip", {"name": "flip", "axis": -2}], "weights": [0.5, 0.0]}


@pytest.mark.parametrize("flip", [FLIP, FLIPS], ids=["flip", "one-of"])
def test_geometry_moves_crop_clean_image_and_swaps_the_edges_of_the_box(
    flip: dict[str, Any],
) -> None:
    straight, view = shown([]), shown([flip])
    flipped = view.box[:, -1, 0] > view.box[:, -1, 1]
    assert 0 < flipped.sum() < 64
    rows = flipped.view(-1, 1, 1, 1)
    for image in (view.crop, view.clean, view.image):
        expected = torch.where(rows, straight.crop.flip(-1), straight.crop)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
    swapped = torch.stack([straight.box[:, 0], straight.box[:, 1].flip(-1)], dim=1)
    assert torch.equal(view.box, torch.where(flipped.view(-1, 1, 1), swapped, straight.box))


def test_a_flip_is_cut_only_where_nothing_comes_before_it() -> None:
    flip, turn = (Operation(choice("distortion", name), CPU) for name in ("flip", "rotate90"))
    assert mirrors([flip, flip, turn, flip]) == [flip, flip]
    assert mirrors([turn, flip]) == mirrors([]) == []


def test_a_box_tells_which_source_pixel_each_crop_pixel_shows() -> None:
    chosen = small_settings(
        views={"size": 8, "geometry": [{"name": "flip", "p": 0.5}], "appearance": [], "distort": []}
    )
    source = Ramp(12)
    loader = Loader(source, chosen, n_views=1)
    view = ViewMaker(chosen, CPU, 1)(loader.crops(range(12), 0), 0, 0).views[0]
    first, last = view.box[:, -1].unbind(-1)
    at = first[:, None] + (torch.arange(8) + 0.5) / 8 * (last - first)[:, None]
    shown = view.crop[:, 0, 4] * 255 + 0.5  # pixel x of the ramp, whose centre is at x + 0.5
    assert (first > last).any()
    inner = slice(1, -1)  # a resized edge pixel has a neighbour on one side only
    torch.testing.assert_close(shown[:, inner], at[:, inner], atol=0.6, rtol=0)


class Ramp(TinySource):
    """Images whose pixels are their column's number."""

    def __init__(self, n: int) -> None:
        super().__init__(n, size=24)
        ramp = torch.arange(24, dtype=torch.uint8).expand(n, 1, 24, 24)
        self._pixels = ramp.numpy().copy()


def test_appearance_changes_clean_and_image_and_leaves_crop_and_box() -> None:
    crops = crops_of()
    view = view_of({"appearance": ["intensity-jitter"]}, crops)
    assert torch.equal(view.crop, crops.pixels[0])
    assert torch.equal(view.box, crops.box[:, 0])
    assert not torch.equal(view.clean, view.crop)
    assert torch.equal(view.image, view.clean)


@pytest.mark.parametrize("geometry", ["flip", "rotate90"])  # made image by image, in batches
def test_a_clean_view_is_what_the_recipe_makes_without_distortions(geometry: str) -> None:
    jitter = {"name": "intensity-jitter", "p": 0.5}
    changes = {"geometry": [geometry], "appearance": [jitter]}
    crops = Loader(TinySource(8, 32), settings(), 2).crops(range(8), 0)
    distorting = settings({**changes, "distort": ["inner-cutout"]})
    views = ViewMaker(distorting, CPU, 2)(crops, 0, 0).views
    others = ViewMaker(settings({**changes, "distort": []}), CPU, 2)(crops, 0, 0).views
    for view, other in zip(views, others, strict=True):
        assert torch.equal(view.clean, other.image)
        assert view.clean is view.clean
        assert not torch.equal(view.image, other.image)


def test_distortions_change_the_image_alone() -> None:
    crops = crops_of()
    view = view_of({"distort": ["inner-cutout"]}, crops)
    assert torch.equal(view.crop, crops.pixels[0])
    assert torch.equal(view.clean, view.crop)
    assert not torch.equal(view.image, view.clean)
    assert torch.equal(view.box, crops.box[:, 0])
    assert view.label is None


def test_the_same_operation_twice_draws_anew() -> None:
    jitter = {"name": "intensity-jitter", "contrast": 0.0}
    crops = crops_of()
    crops = replace(crops, pixels=(torch.full_like(crops.pixels[0], 0.2),))
    once = view_of({"appearance": [jitter]}, crops).clean / 0.2
    twice = view_of({"appearance": [jitter, jitter]}, crops).clean / 0.2
    assert not torch.allclose(twice, once * once)


@pytest.mark.usefixtures("_turns")
def test_a_label_producing_distortion_labels_the_images_it_turned() -> None:
    crops = crops_of(32)
    view = view_of({"distort": [{"name": "turn", "p": 0.5}]}, crops)
    assert view.label is not None
    assert set(view.label.tolist()) == {0, 1, 2, 3}
    for clean, image, turns in zip(view.clean, view.image, view.label.tolist(), strict=True):
        assert torch.equal(image, torch.rot90(clean, turns, (-2, -1)))
    never = view_of({"distort": [{"name": "turn", "p": 0.0}]}, crops)
    assert never.label is not None
    assert never.label.tolist() == [0] * 32


@pytest.mark.usefixtures("_turns")
@pytest.mark.parametrize("turn", ["turn", {"name": "one-of", "of": ["turn"], "weights": [0.5]}])
def test_a_view_whose_label_two_operations_would_make_is_refused(
    turn: str | dict[str, Any],
) -> None:
    name = turn if isinstance(turn, str) else turn["name"]
    chosen = settings({"geometry": ["rotate90"], "distort": ["bezier", turn]})
    with pytest.raises(RecipeError, match=f"one label: got rotate90 and {name}, .* views.each"):
        ViewMaker(chosen, CPU, 1)
    ViewMaker(settings({"each": [{"geometry": ["rotate90"]}, {"distort": [turn]}]}), CPU, 2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_volumes_go_through_every_operation(channels_last: bool) -> None:
    crops = crops_of(4, size=16, dims=3)
    chosen = settings(train={"channels_last": channels_last})
    view = ViewMaker(chosen, CPU, 1)(crops, 0, 0).views[0]
    assert view.image.shape == (4, 1, 16, 16, 16)
    assert view.box.shape == (4, 3, 2)
    for image in images_of(view)[:3]:
        assert ((image >= 0) & (image <= 1)).all()
    flipped = view.box[:, -1, 0] > view.box[:, -1, 1]
    wanted = torch.where(flipped.view(-1, 1, 1, 1, 1), crops.pixels[0].flip(-1), crops.pixels[0])
    assert torch.equal(view.crop, wanted)


def test_visual_words_of_the_source_become_the_label_of_the_batch() -> None:
    crops = replace(crops_of(), label=torch.arange(8) % 3)
    batch = ViewMaker(settings(), CPU, 1)(crops, 0, 0)
    assert batch.label is not None
    assert batch.label.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert ViewMaker(settings(), CPU, 1)(crops_of(), 0, 0).label is None


def test_the_crops_themselves_are_never_written_into() -> None:
    crops = crops_of()
    before = crops.pixels[0].clone(), crops.box.clone()
    ViewMaker(settings(), CPU, 1)(crops, 0, 0)
    assert torch.equal(crops.pixels[0], before[0])
    assert torch.equal(crops.box, before[1])


def test_a_probability_picks_that_part_of_the_images() -> None:
    flip = build_distortion(choice("distortion", "flip"))
    images = torch.rand(2000, 1, 2, 2)
    flipped = distort(flip, images, Draws(torch.arange(2000), seed=0), 0.3)
    part = (flipped != images).flatten(1).any(1).float().mean()
    assert abs(float(part) - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    assert distort(flip, images, Draws(torch.arange(2000), seed=0), 0.0) is images


def test_an_unknown_distortion_is_named_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="did you mean 'flip'"):
        build_distortion(Choice("flipp", DistortionOptions()))


def test_a_distortion_that_cannot_be_built_blames_its_plugin() -> None:
    with pytest.raises(PluginError, match="distortion 'flip' cannot be built"):
        build_distortion(Choice("flip", DistortionOptions()))


EACH: list[dict[str, Any]] = [
    {"appearance": []},
    {"repeat": 2, "side": 0.5, "scale": [0.05, 0.14], "distort": ["outer-cutout"]},
]


def test_views_can_differ_in_size_crop_and_operations() -> None:
    changed = settings(EVERYTHING | {"each": EACH, "size": 32})
    source = TinySource(8, size=128)
    crops = Loader(source, changed, n_views=4).crops(range(8), 0)
    views = ViewMaker(changed, CPU, 4)(crops, 0, 0).views
    assert [view.image.shape[-1] for view in views] == [32, 16, 16, 32]
    assert torch.equal(views[0].clean, views[0].crop)
    assert not torch.equal(views[3].clean, views[3].crop)
    part = [(v.box.diff(dim=-1).abs().prod(1) / 128**2).squeeze(1) for v in views]
    for small in part[1:3]:
        assert (small > 0.04).all()
        assert (small < 0.15).all()
    assert (part[0] > 0.15).all()


def test_a_view_that_nothing_overrides_is_the_view_of_the_plain_recipe() -> None:
    plain, changed = settings(EVERYTHING), settings(EVERYTHING | {"each": EACH})
    batches = []
    for chosen in (plain, changed):
        crops = Loader(TinySource(8), chosen, n_views=4).crops(range(8), 0)
        batches.append(ViewMaker(chosen, CPU, 4)(crops, 0, 0))
    assert torch.equal(batches[0].views[3].image, batches[1].views[3].image)
    assert torch.equal(batches[0].views[0].crop, batches[1].views[0].crop)
    assert not torch.equal(batches[0].views[0].clean, batches[1].views[0].clean)
