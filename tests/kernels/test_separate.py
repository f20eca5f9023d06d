"""Parts of a kernel with machine code of their own: by whichever process, whole, and kept for all that call them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import child, isa

if isa.chosen() == isa.NAIVE:
    pytest.skip("nothing is compiled", allow_module_level=True)

from bitnet_kernels import callees, columns, native, separate
from bitnet_kernels.frame import Frame
from bitnet_kernels.records import Record
from bitnet_kernels.separate import Build, Part
from bitnet_kernels.split import Share
from numba import typeof, types

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model.opening import Options, open_model


@pytest.fixture(scope="module")
def part() -> Part:
    """Rows of `up` behind open gates: a kernel that calls several parts, of which one calls others."""
    arrays = open_model(EMBEDDED_MODEL, Options(threads=1)).engine.arrays
    sizes, weights, scratch = (Record(Frame(value).layout) for value in (arrays.sizes, arrays.weights, arrays.scratch))
    return Part("step", "up_where_gate_is_open", (sizes, weights, scratch, types.int64, typeof(Share(*[np.int64(0)] * 8))))


def names(codes: list[separate.Code]) -> list[str]:
    return [code.symbol.split("-")[0] for code in codes]


def nothing_known(_: str) -> bool:
    return False


def test_every_part_follows_those_that_it_needs(part: Part) -> None:
    codes = Build(nothing_known).run(part, "root", 1)
    assert names(codes)[-1] == "root" and len(set(names(codes))) == len(codes)
    assert {"step.project", "ternary.matvec_chosen", "base3.base3_matvec_chosen", "ternary.matmul_scaled"} <= set(names(codes))
    for i, code in enumerate(codes):
        assert set(code.needs) <= {other.symbol for other in codes[:i]}


def test_what_is_known_is_not_compiled(part: Part) -> None:
    codes = Build(lambda symbol: not symbol.startswith("ternary.matvec_chosen")).run(part, "root", 1)
    assert names(codes) == ["ternary.matvec_chosen", "root"]
    assert {need.split("-")[0] for need in codes[-1].needs} == {"step.project", "ternary.matvec_chosen", "base3.base3_matvec_chosen"}


def as_child(code: str) -> Callable[..., Any]:
    def start(*_: object) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", f"import pickle, sys; from bitnet_kernels import child; {code}"]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    return start


@pytest.mark.parametrize(
    "code",
    [
        "pass",
        "sys.stdin.buffer.read(8)",
        "sys.stdout.buffer.write(child.framed(pickle.dumps('ready')))",
        "sys.stdout.buffer.write(child.framed(pickle.dumps('ready'))); sys.stdout.flush(); sys.stdin.buffer.read(3000)",
        "sys.stdout.buffer.write(b'no message at all, and longer than its length')",
        "sys.stdout.buffer.write(child.framed(b'no pickle'))",
    ],
)
def test_a_child_that_fails_leaves_its_part_to_others(part: Part, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, hangs, or says what nobody understands."""
    monkeypatch.setattr(child, "start", as_child(code))
    monkeypatch.setattr(separate, "PATIENCE", 1.0)
    codes = Build(lambda symbol: not symbol.startswith(("ternary", "base3"))).run(part, "root", 3)
    assert sorted(names(codes)) == ["base3.base3_matvec_chosen", "root", "ternary.matvec_chosen"]


def test_nothing_is_left_of_what_is_interrupted(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C: children end, and the threads that led them."""
    build, before = Build(nothing_known), threading.active_count()

    def interrupted(*_: object) -> None:
        until = time.monotonic() + 60
        while not build._children or build._children[0].stdout is None or threading.active_count() == before:
            assert time.monotonic() < until
        raise KeyboardInterrupt

    monkeypatch.setattr(separate, "compile_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.run(part, "root", 2)
    for process in build._children:
        process.wait(60)
    until = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_without_children(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a frozen program."""

    def none(*_: object) -> None:
        raise child.NoChildError

    monkeypatch.setattr(child, "start", none)
    assert names(Build(lambda symbol: True).run(part, "root", 3)) == ["root"]


def test_children_compile_what_this_process_would(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here only the root is compiled: this process waits until its child has done all the others."""
    take = Build._take

    def left_to_the_child(self: Build, patience: float | None = None) -> Any:
        if patience is None:
            return take(self)
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._at_work)
        return None

    here = {code.symbol: code.needs for code in Build(nothing_known).run(part, "root", 1)}
    monkeypatch.setattr(Build, "_take", left_to_the_child)
    there = {code.symbol: code.needs for code in Build(nothing_known).run(part, "root", 2)}
    assert there == here


def test_what_a_part_returns_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = columns.find_active
    monkeypatch.setattr(callees.of(kernel), "returns", "none")
    arguments = (types.int8[::1], types.int64, types.int64[::1], types.int32[::1])
    with pytest.raises(TypeError, match="returns int64, and is marked as none"):
        separate.compile_part(Part("columns", "find_active", arguments), "x", lambda part: None)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells which CPUs a process may use")
def test_as_many_processes_as_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, expected in ((1, 1), (2, 2), (64, separate.PROCESSES)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)))
        assert separate.processes() == expected


def test_parts_are_found_where_they_were_linked_before(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    *parts, root = Build(nothing_known).run(part, "root", 1)
    monkeypatch.setattr(native, "_addresses", {})
    native._link(parts)
    native._link([root])
    assert native._addresses.keys() == {code.symbol for code in (*parts, root)} and all(native._addresses.values())
