"""Batches are a function of recipe and place; images that cannot be read are replaced and named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from parts import forked

from dira_core.data.crops import crop_boxes
from dira_core.data.cutting import whole_images
from dira_core.data.dataset import CropDataset, Crops, Request
from dira_core.data.images import Images
from dira_core.data.loader import Loader
from dira_core.data.pyramid import crop_level
from dira_core.data.workers import _begin
from dira_core.draws import Draws
from dira_core.errors import DataError, PluginError, ResourceError
from dira_core.roles import Source
from dira_core.settings import Settings
from dira_core.types import Image

linux = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


class Noise(Source):
    """Images of several sizes, types and windows; some can be unreadable, or do harm."""

    def __init__(self, n: int, bad: Sequence[int] = (), harm: dict[int, Any] | None = None) -> None:
        self.n = n
        self.bad = bad
        self.harm = harm or {}
        self.words = np.arange(n) * 10
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> Image:
        self.reads.append(index)
        if index in self.bad:
            raise DataError(f"number {index} is torn")
        if index in self.harm:
            self.harm[index]()
        shape = (1, 40 + index % 7, 50 - index % 5)
        rng = np.random.default_rng(index)
        if index % 2:
            return Image(rng.integers(0, 256, shape, dtype=np.uint8), (0.0, 255.0))
        return Image(rng.normal(40, 200, shape).astype(np.float32), (-160.0, 240.0))

    def name(self, index: int) -> str:
        return f"noise {index}"

    def fingerprint(self) -> str:
        return f"noise {self.n}"


def settings(batch_size: int = 4, **loader: Any) -> Settings:
    return Settings.model_validate(
        {
            "seed": 3,
            "loader": loader,
            "views": {"size": 16},
            "train": {"batch_size": batch_size, "device": "cpu"},
        }
    )


@contextmanager
def opened(source: Source, given: Settings, **options: Any) -> Iterator[Loader]:
    loader = Loader(source, given, 2, **options)
    try:
        yield loader
    finally:
        loader.close()


def read_epoch(source: Source, given: Settings, epoch: int = 1, **place: int) -> list[Crops]:
    with opened(source, given) as loader:
        return list(loader.batches(epoch, **place))


def same(a: Crops, b: Crops) -> bool:
    """Whether two batches are equal, bit for bit."""
    tensors = [(*crops.pixels, crops.box, crops.index, crops.label) for crops in (a, b)]
    return a.unreadable == b.unreadable and all(map(torch.equal, *tensors))  # type: ignore[arg-type]


def by_index(batches: Sequence[Crops]) -> dict[int, tuple[torch.Tensor, ...]]:
    """Return the pixels of all views and the boxes of every image."""
    return {
        int(i): (*(view[row] for view in crops.pixels), crops.box[row])
        for crops in batches
        for row, i in enumerate(crops.index)
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_views_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    source = Noise(22, bad=[5, 6, 21])
    given = settings(max_unreadable=0.2)
    here = read_epoch(source, given)
    there = read_epoch(source, settings(max_unreadable=0.2, workers=workers))
    assert len(here) == len(there) == 5
    assert all(map(same, here, there))


def test_views_do_not_depend_on_the_size_of_the_batch() -> None:
    small, large = (by_index(read_epoch(Noise(24), settings(size))) for size in (3, 8))
    assert small.keys() == large.keys() == set(range(24))
    assert all(all(map(torch.equal, small[i], large[i])) for i in small)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_any_image(workers: int) -> None:
    given = settings(workers=workers)
    whole = read_epoch(Noise(22), given)
    rest = read_epoch(Noise(22), given, start=8)
    assert len(rest) == 3
    assert all(map(same, whole[2:], rest))


@pytest.mark.parametrize(("n", "batch_size"), [(24, 4), (23, 4), (7, 7), (9, 5)])
def test_an_epoch_visits_every_image_once_but_for_an_incomplete_batch(
    n: int, batch_size: int
) -> None:
    batches = read_epoch(Noise(n), settings(batch_size))
    visited = torch.cat([crops.index for crops in batches]).tolist()
    assert len(visited) == len(set(visited)) == n - n % batch_size
    assert all(len(crops.index) == batch_size for crops in batches)


def test_a_loader_says_how_many_batches_come_and_in_which_order() -> None:
    with opened(Noise(23), settings()) as loader:
        assert loader.batch_size == 4
        batches = list(loader.batches(2))
        assert loader.batches_per_epoch == len(batches)
        visited = torch.cat([crops.index for crops in batches])
        assert torch.equal(visited, loader.order(2)[:20])
        assert not torch.equal(loader.order(2), loader.order(3))


def test_epochs_views_and_salts_crop_differently() -> None:
    with opened(Noise(8), settings()) as loader:
        base, later = loader.crops(range(8), 0), loader.crops(range(8), 1)
        salted = loader.crops(range(8), 0, salt=1)
        assert same(base, loader.crops(range(8), 0, salt=0))
        assert not torch.equal(base.box[:, 0], base.box[:, 1])
        for other in (later, salted):
            assert not torch.equal(base.box, other.box)
        assert not torch.equal(loader.order(0), loader.order(0, salt=1))


def test_a_batch_equals_a_plain_loop_over_its_samples() -> None:
    source, given = Noise(9), settings()
    indices = [7, 0, 4]
    crops = CropDataset(source, given, 2).crops(Request(indices, epoch=5))
    assert crops.index.tolist() == indices
    assert crops.label is not None
    assert crops.label.tolist() == [70, 0, 40]
    for view in range(2):
        for row, i in enumerate(indices):
            image = source.read(i)
            draws = Draws(torch.tensor([i]), seed=3, epoch=5, view=view, path="crop")
            shape = torch.tensor([image.pixels.shape[1:]])
            box = crop_boxes(shape, draws, given.views.scale, given.views.ratio)[0]
            low, high = image.window
            expected = ((crop_level(image, box.tolist(), 16) - low) / (high - low)).clip(0, 1)
            assert np.allclose(crops.pixels[view][row], expected, atol=1e-6)
            assert torch.equal(crops.box[row, view], box.float())
    assert crops.pixels[0].dtype == crops.box.dtype == torch.float32


def test_an_unreadable_image_is_replaced_by_the_next_readable_one() -> None:
    bad = [3, 4, 11]
    with opened(Noise(12, bad), settings(max_unreadable=0.25)) as loader:
        batches = list(loader.batches(0))
        visited = torch.cat([crops.index for crops in batches])
        stand_in = {3: 5, 4: 5, 11: 0}
        assert visited.tolist() == [stand_in.get(int(i), int(i)) for i in loader.order(0)]
        reported = [entry for crops in batches for entry in crops.unreadable]
        assert sorted(reported) == [(i, f"number {i} is torn") for i in bad]
        assert loader.unreadable == dict(reported)
        list(loader.batches(1))
        assert len(loader.unreadable) == 3


def test_too_many_unreadable_images_in_a_row_end_the_run() -> None:
    with pytest.raises(DataError, match=r"at least 3 of 20 .*noise \d+: number .*max_unreadable$"):
        read_epoch(Noise(20, range(8)), settings(max_unreadable=0.1))
    with pytest.raises(DataError, match="none of 6 images"):
        read_epoch(Noise(6, range(6)), settings(max_unreadable=1.0))


@pytest.mark.slow
def test_an_error_of_the_data_keeps_its_one_line_on_the_way_from_a_worker() -> None:
    with pytest.raises(DataError) as caught:
        read_epoch(Noise(20, range(20)), settings(workers=1))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("at least 2 of 20 images are unreadable")


def stumble() -> None:
    raise KeyError("rows")


def test_a_source_that_raises_something_else_is_blamed_on_its_plugin() -> None:
    with pytest.raises(PluginError, match="Noise raised KeyError: 'rows' on image 2"):
        whole_images(Noise(5, harm={2: stumble}), [2], 16, 1)


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_keeping_images_changes_nothing(cache_mb: int) -> None:
    source = Noise(12)
    with opened(source, settings(cache_mb=cache_mb)) as loader:
        batches = [*loader.batches(0), *loader.batches(1)]
    with opened(Noise(12), settings()) as fresh:
        assert all(map(same, batches, [*fresh.batches(0), *fresh.batches(1)]))
    assert len(source.reads) == (12 if cache_mb else 24)


def test_the_cache_never_exceeds_its_limit() -> None:
    source = Noise(30)
    size = source.read(1).pixels.nbytes
    images = Images(source, 1, cache_bytes=10 * size)
    source.reads.clear()
    for _ in range(2):
        for i in range(1, 30, 2):
            images.readable(i)
    again = len(source.reads) - 15
    assert 5 <= 15 - again <= 10


class Colour(Noise):
    def read(self, index: int) -> Image:
        rng = np.random.default_rng(index)
        channels = 1 if index == 0 else 3
        return Image(rng.integers(0, 256, (channels, 40, 40), dtype=np.uint8), (0.0, 255.0))


def test_channels_are_mixed_or_repeated_as_the_recipe_asks() -> None:
    grey = whole_images(Colour(3), [0, 1], 40, 1)
    colour = whole_images(Colour(3), [0, 1], 40, 3)
    assert (grey.shape, colour.shape) == ((2, 1, 40, 40), (2, 3, 40, 40))
    assert torch.equal(colour[0], grey[0].expand(3, -1, -1))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert torch.allclose((colour[1] * weights).sum(0), grey[1, 0], atol=0.51 / 255)
    with pytest.raises(DataError, match="3 channels, the recipe asks for 2"):
        Images(Colour(3), 2, max_unreadable=0.0).readable(1)


class Volumes(Noise):
    def read(self, index: int) -> Image:
        shape = (1, 12, 30, 20) if index else (1, 30, 20)
        return Image(np.random.default_rng(index).random(shape, dtype=np.float32), (0.0, 1.0))


def test_volumes_are_cropped_too_but_not_beside_flat_images() -> None:
    dataset = CropDataset(Volumes(5), settings(), 2)
    crops = dataset.crops(Request([1, 2, 3], epoch=0))
    assert crops.pixels[0].shape == (3, 1, 16, 16, 16)
    assert crops.box.shape == (3, 2, 3, 2)
    assert whole_images(Volumes(5), [1], 16, 1).shape == (1, 1, 16, 16, 16)
    with pytest.raises(DataError, match=r"equally many axes, got \[2, 3\]"):
        dataset.crops(Request([0, 1], epoch=0))


def test_whole_images_are_central_squares_without_augmentation() -> None:
    source = Noise(12, bad=[7])
    images = whole_images(source, [3, 7], 43, 1)
    pixels = source.read(3).pixels
    height, width = pixels.shape[1:]
    assert (height, width) == (43, 47)
    assert torch.allclose(
        images[0, 0], torch.from_numpy(pixels[0, :, 2:45].astype(np.float32)) / 255
    )
    assert torch.equal(images[1], whole_images(source, [8], 43, 1)[0])


def test_a_source_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(DataError, match="a step needs 8 images, the source has 7.*--batch-size"):
        Loader(Noise(7), settings(8), 2)
    twice = settings().model_copy(
        update={"train": settings().train.model_copy(update={"accumulate": 2})}
    )
    with pytest.raises(DataError, match="a step needs 8 images"):
        Loader(Noise(7), twice, 2)


@pytest.mark.slow
def test_workers_are_kept_and_an_abandoned_epoch_leaves_nothing_behind() -> None:
    source, given = Noise(40), settings(workers=2)
    expected = read_epoch(source, settings(), epoch=1)
    with opened(source, given) as loader:
        next(loader.batches(0))
        before = {p.pid for p in multiprocessing.active_children()}
        assert all(map(same, expected, loader.batches(1)))
        assert {p.pid for p in multiprocessing.active_children()} == before
        assert all(map(same, expected, loader.batches(1)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@linux
@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_worker_is_reported_within_seconds_with_the_way_out() -> None:
    started = time.monotonic()
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(
        ResourceError, match=r"a data worker died \(process \d+, exit code -9.*--resume"
    ):
        read_epoch(Noise(16, harm={9: die}), settings(workers=2))
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGCHLD) == handler


@linux
@pytest.mark.faults
def test_a_worker_whose_trainer_is_gone_before_it_begins_ends_at_once() -> None:
    reader, writer = os.pipe()

    def work() -> None:
        trainer = multiprocessing.parent_process()
        while trainer is not None and os.getppid() == trainer.pid:
            time.sleep(0.01)
        _begin(0)
        os.write(writer, b"works for nobody")

    def train() -> None:
        multiprocessing.get_context("fork").Process(target=work).start()
        die()

    os.waitpid(forked(train), 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == ""


@linux
@pytest.mark.slow
@pytest.mark.faults
def test_a_worker_killed_between_batches_never_interrupts_the_trainer() -> None:
    with opened(Noise(400), settings(workers=2)) as loader:
        others = set(multiprocessing.active_children())
        batches = loader.batches(0)
        next(batches)
        (victim, _) = set(multiprocessing.active_children()) - others
        victim.kill()
        victim.join()
        time.sleep(0.2)
        with pytest.raises(ResourceError, match="a data worker died"):
            list(batches)


def hang() -> None:
    time.sleep(1000)


@linux
@pytest.mark.slow
@pytest.mark.faults
def test_a_worker_that_hangs_is_reported_and_ended() -> None:
    others = set(multiprocessing.active_children())
    with opened(Noise(8, harm={3: hang}), settings(workers=1), timeout=2.0) as loader:
        with pytest.raises(DataError, match="no batch came within 2 s.*--resume"):
            list(loader.batches(0))
        for process in set(multiprocessing.active_children()) - others:
            process.join(5)
            assert not process.is_alive()


@linux
@pytest.mark.slow
def test_what_is_left_over_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dira_core.data.workers.POLL_SECONDS", 0.1)
    slow = dict.fromkeys(range(40), lambda: time.sleep(0.1))  # 0.4 s a batch
    with opened(Noise(40, harm=slow), settings(workers=1), timeout=60.0) as loader:
        left = loader.batches(0)
        next(left)
        found = next(loader.batches(1))
    assert torch.equal(found.index, next(iter(read_epoch(Noise(40), settings()))).index)


@linux
@pytest.mark.slow
@pytest.mark.faults
def test_workers_outlive_the_signals_that_ask_the_trainer_to_save() -> None:
    with opened(Noise(200), settings(workers=2)) as loader:
        others = set(multiprocessing.active_children())
        batches = loader.batches(0)
        next(batches)
        for process in set(multiprocessing.active_children()) - others:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(process.pid or 0, number)
        assert len(list(batches)) == 49
