"""Ctrl-C and SIGTERM in what cannot bear an exception at any moment: they wait, and are not lost."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from bitnet_kernels import interrupts, isa
from bitnet_kernels.interrupts import interrupted_later, let_interrupt


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal whose handler raises KeyboardInterrupt."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_it_comes_at_the_end(number: int) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupted_later():
        signal.raise_signal(number)
        done.append(1)
    assert done
    assert signal.getsignal(number) is signal.default_int_handler


def test_it_comes_where_it_may(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_later(may_come=True):
        let_interrupt()
        signal.raise_signal(number)
        let_interrupt()
        pytest.fail("went on")
    assert signal.getsignal(number) is signal.default_int_handler
    let_interrupt()  # nothing waits any more


def test_it_comes_nowhere_else(number: int) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupted_later(), interrupted_later(may_come=True):
        signal.raise_signal(number)
        let_interrupt()
        done.append(1)
    assert done


def test_it_is_not_lost_where_the_body_fails(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_later():
        signal.raise_signal(number)
        raise ValueError


def test_within_another(number: int) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupted_later():
        with interrupted_later():
            signal.raise_signal(number)
        done.append(1)
    assert done


def test_a_handler_that_raises_the_second_time(number: int) -> None:
    """As asyncio's for Ctrl-C: after the first time the body is protected as before."""
    came: list[int | None] = []

    def handler(number: int, frame: FrameType | None) -> None:
        came.append(frame and frame.f_lineno)
        if len(came) > 1:
            raise KeyboardInterrupt

    signal.signal(number, handler)
    done = []
    with pytest.raises(KeyboardInterrupt), interrupted_later(may_come=True):
        signal.raise_signal(number)
        assert not came
        let_interrupt()
        assert len(came) == 1
        signal.raise_signal(number)
        done.append(1)
    assert done and None not in came


def test_two_signals_that_both_raise() -> None:
    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        for body in (interrupted_later(), interrupted_later(may_come=True)):
            with pytest.raises(SystemExit), body:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                let_interrupt()
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)


def test_who_sets_a_handler_meanwhile_keeps_it(number: int) -> None:
    with interrupted_later():
        signal.signal(number, print)
    assert signal.getsignal(number) is print


def test_a_signal_at_any_line_leaves_everything_as_it_was(number: int) -> None:
    """Also while signals begin to wait, and while they are let through."""
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    ended, line = 0, 0
    while ended < 2:  # the last two moments come after the end
        line, left = line + 1, line + 1

        def watch(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename == interrupts.__file__:
                left -= event == "line"
                if left == 0 and event == "line":
                    signal.raise_signal(number)
            return watch

        tracing = sys.gettrace()
        try:
            sys.settrace(watch)
            with interrupted_later():
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        ended += left > 0
        assert {which: signal.getsignal(which) for which in before} == before, line
        assert interrupts._handlers == {} and interrupts._noted == [], line
    assert line > 20


def test_who_ignores_them_goes_on_doing_so(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interrupted_later():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_IGN


def test_only_the_main_thread_is_interrupted(number: int) -> None:
    came: list[str] = []

    def other() -> None:
        with interrupted_later():
            let_interrupt()
            came.append("other")

    with pytest.raises(KeyboardInterrupt), interrupted_later():
        signal.raise_signal(number)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        came.append("main")
    assert came == ["other", "main"]


@pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="nothing is compiled")
def test_at_any_moment_of_the_linker(run_script: Callable[..., Any]) -> None:
    assert run_script("interrupt_compiler.py", BITNET_ISA="") >= 3
