"""Ctrl-C and SIGTERM in what cannot bear an exception at any moment: they wait, and are not lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bitnet_kernels import isa
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
    with pytest.raises(KeyboardInterrupt), interrupted_later():
        let_interrupt()
        signal.raise_signal(number)
        let_interrupt()
        pytest.fail("went on")
    assert signal.getsignal(number) is signal.default_int_handler
    let_interrupt()  # nothing waits any more


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


def test_a_handler_that_raises_nothing(number: int) -> None:
    came: list[int] = []
    signal.signal(number, lambda number, _: came.append(number))
    with interrupted_later():
        signal.raise_signal(number)
        assert not came
        let_interrupt()
        assert came == [number]
        signal.raise_signal(number)  # let through: it waits no longer
        assert came == [number, number]


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
