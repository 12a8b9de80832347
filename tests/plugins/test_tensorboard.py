"""What the tracker writes, read back by TensorBoard."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dira_tensorboard
from dira_core import PluginError, Tracker
from dira_tensorboard import TensorBoardOptions


def build(folder: Path) -> Tracker:
    (component,) = dira_tensorboard.dira_trackers()
    tracker: Tracker = component.build(TensorBoardOptions(), folder)
    return tracker


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_are_read_back_by_name_and_step(tmp_path: Path) -> None:
    tracker = build(tmp_path)
    tracker.log(10, {"losses/dis": -0.5, "lr": 0.25})
    tracker.log(20, {"losses/dis": -0.75})
    tracker.close()
    assert scalars(tmp_path, "losses/dis") == [(10, -0.5), (20, -0.75)]
    assert scalars(tmp_path, "lr") == [(10, 0.25)]


def test_pictures_are_read_back_pixel_for_pixel(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    tracker = build(tmp_path)
    tracker.images(7, {"grey": grey, "colour": colour})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    for name, expected in (("grey", np.stack([grey] * 3, axis=-1)), ("colour", colour)):
        (event,) = events.Images(name)
        picture = Image.open(io.BytesIO(event.encoded_image_string))
        assert event.step == 7
        assert np.array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("same_process", [True, False])
def test_a_resumed_or_rolled_back_run_shows_no_step_twice(
    tmp_path: Path, same_process: bool
) -> None:
    tracker = build(tmp_path)
    for step in (10, 20, 30):
        tracker.log(step, {"loss": float(step)})
    if not same_process:
        tracker.close()
        tracker = build(tmp_path)
    for step in (20, 30):
        tracker.log(step, {"loss": -float(step)})
    tracker.close()
    assert scalars(tmp_path, "loss") == [(10, 10.0), (20, -20.0), (30, -30.0)]


def test_a_tracker_that_logged_nothing_leaves_nothing(tmp_path: Path) -> None:
    build(tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_missing_tensorboard_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PluginError, match=r"pip install 'dira-ssl\[tensorboard\]'") as caught:
        build(tmp_path)
    assert isinstance(caught.value.__cause__, ImportError)
