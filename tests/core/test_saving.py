"""A save beside the training holds the state of the instant it was asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dira_core import checkpoint_draft, hostcopies, saving
from dira_core.checkpoint import Checkpoints
from dira_core.checkpoint_manifest import Entry
from dira_core.errors import ResourceError
from dira_core.saving import Saver


class Gate:
    """Holds up whoever writes tensors, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        write = checkpoint_draft.stream

        def held_up(path: Path, content: Iterator[memoryview]) -> Entry:
            self.reached.set()
            assert self.opened.wait(60)
            return write(path, content)

        monkeypatch.setattr(checkpoint_draft, "stream", held_up)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


def net() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    return {"model": {"kernel": kernel, "bias": torch.randn(8)}, "optimizer": {"m": torch.ones(3)}}


def train(tensors: dict[str, dict[str, Tensor]]) -> None:
    for group in tensors.values():
        for tensor in group.values():
            tensor.mul_(3).add_(1)


def cloned(tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {stem: {n: t.clone() for n, t in group.items()} for stem, group in tensors.items()}


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[stem].keys() == b[stem].keys()
        and all(torch.equal(a[stem][name], b[stem][name]) for name in a[stem])
        for stem in a
    )


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_holds_the_state_at_the_call_though_training_goes_on(
    tmp_path: Path, background: bool
) -> None:
    checkpoints = Checkpoints(tmp_path, 9)
    saver, tensors = Saver(checkpoints, background=background), net()
    state = {"step": 0, "list": [0]}
    asked = []
    for step in range(1, 6):
        asked.append(cloned(tensors))
        state["step"], state["list"] = step, [step]
        saver.save(step, tensors, state)
        train(tensors)
        state["step"] = -1
    saver.wait()
    for step, wanted in enumerate(asked, 1):
        found, read = checkpoints.load(tmp_path / f"step-{step:08d}")
        assert same(found, wanted)
        assert read == {"step": step, "list": [step]}


def test_optimizers_step_only_when_their_state_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, opened = torch.nn.Parameter(torch.ones(3)), threading.Event()
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    weight.grad = torch.ones(3)
    optimizer.step()
    momentum = optimizer.state[weight]["momentum_buffer"]
    tensors = {"model": {"w": weight.detach()}, "optimizer": {"m": momentum}}
    asked, copy = cloned(tensors), hostcopies._copy

    def held_up(pairs: list[tuple[Tensor, Tensor]], threads: int) -> None:
        if any(tensor.data_ptr() == momentum.data_ptr() for _, tensor in pairs):
            assert opened.wait(60)
        copy(pairs, threads)

    monkeypatch.setattr(hostcopies, "_copy", held_up)
    saver = Saver(Checkpoints(tmp_path, 2), background=True)
    saver.save(1, tensors, {}, optimizers=[optimizer])
    step = threading.Thread(target=optimizer.step)
    step.start()
    step.join(0.1)
    assert step.is_alive()
    assert torch.equal(momentum, asked["optimizer"]["m"])
    opened.set()
    step.join(60)
    assert not torch.equal(momentum, asked["optimizer"]["m"])
    saver.wait()
    assert same(Checkpoints(tmp_path, 2).load(tmp_path / "step-00000001")[0], asked)
    assert not optimizer._optimizer_step_pre_hooks


def test_both_ways_to_save_write_the_same_bytes(tmp_path: Path) -> None:
    for name, background in (("a", True), ("b", False)):
        saver = Saver(Checkpoints(tmp_path / name, 2), background=background)
        saver.save(1, net(), {"step": 1})
        saver.wait()
    files = [sorted((tmp_path / name / "step-00000001").iterdir()) for name in "ab"]
    assert [[p.name for p in each] for each in files] == [
        ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    ] * 2
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_training_goes_on_while_a_save_is_held_up_and_the_next_save_waits_for_it(
    tmp_path: Path, gate: Gate
) -> None:
    saver, tensors, told = Saver(Checkpoints(tmp_path, 2), background=True), net(), []
    saver.save(1, tensors, {}, saved=lambda path: told.append(path.name))
    assert gate.reached.wait(60)
    for _ in range(100):
        train(tensors)
        saver.poll()
    assert told == []
    assert [path.name for path in tmp_path.glob("step-*")] == []

    def second() -> None:
        saver.save(2, tensors, {}, saved=lambda path: told.append(path.name))
        told.append("second copied")

    other = threading.Thread(target=second)
    other.start()
    other.join(0.05)
    assert told == []
    gate.opened.set()
    other.join(60)
    assert told[:2] == ["step-00000001", "second copied"]
    saver.wait()
    saver.wait()
    assert told[2:] == ["step-00000002"]


def test_whoever_asks_is_told_once_and_not_by_the_thread(tmp_path: Path) -> None:
    saver, told = Saver(Checkpoints(tmp_path, 2), background=True), []
    saver.save(1, net(), {}, saved=lambda path: told.append(threading.current_thread()))
    saver.wait()
    saver.save(1, net(), {}, saved=lambda path: told.append("again"))
    saver.wait()
    assert told == [threading.main_thread()]


def test_what_must_be_on_disk_before_is_so_before_the_checkpoint_counts(tmp_path: Path) -> None:
    saver, seen = Saver(Checkpoints(tmp_path, 2), background=True), []
    saver.save(1, net(), {}, before=[lambda: seen.append([p.name for p in tmp_path.iterdir()])])
    saver.wait()
    assert seen == [[]]
    assert (tmp_path / "step-00000001").is_dir()


@pytest.mark.parametrize("ask", ["poll", "wait", "save", "close"])
def test_an_error_of_the_thread_is_raised_when_next_asked_and_the_next_save_works(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    saver = Saver(Checkpoints(tmp_path, 2), background=True)

    def full() -> None:
        raise ResourceError("no space left")

    saver.save(1, net(), {}, before=[full])
    assert saver._pending is not None
    assert saver._pending.outcome.exception(60) is not None
    with pytest.raises(ResourceError, match="no space left"):
        {
            "poll": saver.poll,
            "wait": saver.wait,
            "save": lambda: saver.save(2, net(), {}),
            "close": lambda: saver.close(None),
        }[ask]()
    gate.opened.set()
    saver.save(3, net(), {})
    saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_run_that_ends_with_an_error_still_gets_its_last_checkpoint(
    tmp_path: Path, gate: Gate
) -> None:
    saver = Saver(Checkpoints(tmp_path, 2), background=True)
    saver.save(1, net(), {})
    threading.Timer(0.05, gate.opened.set).start()
    saver.close(RuntimeError("of the run"))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_after_an_error_of_the_run_that_of_a_save_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c").write_text("a file")
    saver = Saver(Checkpoints(tmp_path / "c", 2), background=True)
    saver.save(1, net(), {})
    saver.close(RuntimeError("of the run"))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "the last checkpoint was not completed: cannot write in" in record.message


def test_who_interrupts_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "HURRY_S", 0.01)
    saver = Saver(Checkpoints(tmp_path, 2), background=True)
    saver.save(1, net(), {})
    assert gate.reached.wait(60)
    assert saver._pending is not None
    outcome = saver._pending.outcome
    saver.close(KeyboardInterrupt())
    assert not outcome.done()
    gate.opened.set()
    assert outcome.result(60) == tmp_path / "step-00000001"
