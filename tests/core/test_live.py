"""A run on a terminal is a bar; anywhere else it is a line now and then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dira_core.cli import live
from dira_core.cli.live import Terminal, described
from dira_core.types import Progress

METRICS = {"losses/dis": -0.61234567, "losses/res": 0.0182, "gradients/dis": 3.0}
SPEED = {"images_per_s": 412.3}


def at(step: int) -> Progress:
    return Progress(step, 10, step // 5, 2)


def test_losses_are_described_in_one_short_text() -> None:
    assert described(METRICS) == "dis -0.6123  res 0.0182"


def test_without_a_terminal_lines_come_at_most_so_often_and_the_last_step_always(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [100.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    with Terminal() as terminal:
        for step in range(1, 11):
            seconds[0] += 2
            terminal.stepped(at(step), METRICS, SPEED)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split("step ")[1].split(" ")[0] for line in lines] == [
        "1/10",
        "4/10",
        "7/10",
        "10/10",
    ]
    assert lines[0] == "epoch 1/2  step 1/10  412 images/s  dis -0.6123  res 0.0182"
    assert lines[-1].startswith("epoch 2/2")


def test_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    message = "health: [bold]collapse[/bold] " + "x" * 300
    with Terminal() as terminal:
        terminal.said(message)
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize("columns", [80, 119, 120, 160])
def test_on_a_terminal_there_is_a_bar_with_the_losses_and_messages_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    with Terminal() as terminal:
        terminal.stepped(at(4), METRICS, SPEED)
        terminal.said("hello")
    shown = capsys.readouterr().err
    for word in ("epoch 1/2", "4/10", "412 images/s", "res 0.0182", "hello", "eta"):
        assert word in shown
    assert ("━" in shown) == (columns >= 120)
    assert "step 4/10" not in shown


def test_an_error_takes_the_bar_away_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with Terminal() as terminal:
            terminal.said("so far")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert capsys.readouterr().err == "so far\n"
