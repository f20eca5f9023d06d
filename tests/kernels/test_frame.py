"""Frames: what a kernel reads through a record is what the tuple holds, and what it stores arrives."""

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pytest
from bitnet_kernels import isa
from bitnet_kernels.frame import Frame, words

if isa.chosen() == isa.NAIVE:
    pytest.skip("nothing is compiled", allow_module_level=True)

from bitnet_kernels.jit import entry
from bitnet_kernels.records import Record
from numba import types


class Inner(NamedTuple):
    codes: Any
    nothing: Any
    last: Any


class Outer(NamedTuple):
    count: Any
    inner: Inner
    share: Any
    out: Any


@entry
def gather(frame, row):  # type: ignore[no-untyped-def]
    """Every kind of field: out[row] gets the sum of what there is; returns the number of codes."""
    inner = frame.inner
    total = 0.0
    for i in range(inner.codes.shape[1]):
        total += inner.codes[row, i]
    frame.out[row, 1] = np.float32(total + frame.count + frame.share + inner.last[0, 0, row])
    if inner.nothing is None:
        frame.out[row, 0] = np.float32(len(inner.codes))
    return inner.codes.size


def run(value: Outer, row: int) -> int:
    frame = Frame(value)
    signature = (Record(frame.layout), types.int64)
    gather.compile(signature)
    compiled = gather.overloads[signature]
    function: Any = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, ctypes.c_int64)(
        compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    )
    result, error = ctypes.c_int64(), ctypes.c_void_p()
    assert function(ctypes.byref(result), ctypes.byref(error), frame.address, row) == 0
    return result.value


def value(rows: int = 3, cols: int = 5) -> Outer:
    codes = np.arange(rows * cols, dtype=np.int8).reshape(rows, cols)
    return Outer(np.int64(1000), Inner(codes, None, np.full((1, 1, rows), 0.25)), 0.5, np.zeros((rows, 2), np.float32))


def test_a_kernel_sees_what_the_tuple_holds() -> None:
    one = value()
    assert run(one, 1) == 15
    assert one.out.tolist() == [[0, 0], [3, 5 + 6 + 7 + 8 + 9 + 1000 + 0.5 + 0.25], [0, 0]]


def test_one_layout_for_all_shapes() -> None:
    """Code is compiled for types and dimensions, not for sizes."""
    assert Frame(value()).layout == Frame(value(7, 2)).layout
    assert Frame(value()).layout != Frame(value()._replace(share=1)).layout
    assert words(Frame(value()).layout) == len(Frame(value())._table) == 1 + 5 + 7 + 1 + 5


def test_arrays_that_are_not_in_order_are_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        Frame(value()._replace(out=np.zeros((2, 3), np.float32).T))
