"""Signals set one flag; only a second SIGINT interrupts."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from dira_core.signals import EXIT_PREEMPTED, WATCHED, Stop


def test_nothing_is_requested_before_a_signal_comes() -> None:
    with Stop() as stop:
        assert stop.requested is None


@pytest.mark.parametrize("number", WATCHED)
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested == number.name


def test_twenty_signals_are_one_request_by_the_first_of_them() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        for number in [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2] * 6 + [signal.SIGINT]:
            os.kill(os.getpid(), number)
        assert stop.requested == "SIGUSR1"


def test_the_second_sigint_interrupts_and_restores_the_default() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_only_the_first_sigint_is_answered(capfd: pytest.CaptureFixture[str]) -> None:
    with Stop(says=True):
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""
        os.kill(os.getpid(), signal.SIGINT)
        assert "press Ctrl-C again" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err == ""


def test_a_sigint_after_a_sigterm_is_the_first_sigint() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGTERM"


def test_the_handlers_from_before_are_back_on_exit() -> None:
    before = [signal.getsignal(number) for number in WATCHED]
    with Stop():
        assert all(signal.getsignal(number) not in before for number in WATCHED)
    assert [signal.getsignal(number) for number in WATCHED] == before


def test_outside_the_main_thread_it_changes_no_handler() -> None:
    found: list[object] = []

    def look() -> None:
        with Stop() as stop:
            found.extend(signal.getsignal(number) for number in WATCHED)
            found.append(stop.requested)

    before = [signal.getsignal(number) for number in WATCHED]
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [*before, None]


def test_asked_to_leave_is_the_exit_code_of_sysexits_for_try_again() -> None:
    assert EXIT_PREEMPTED == os.EX_TEMPFAIL
