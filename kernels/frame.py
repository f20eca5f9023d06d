"""What a kernel works on, laid out in memory: Python passes one address instead of hundreds of numbers. No Numba here.

A frame is a table of 8-byte words. Fields of a (named) tuple follow each other; a number is one word, None takes none, and an array is the
address of its data, its shape and its strides in bytes. `layout` says what stands where, by type only: code is compiled for a layout and
runs over any frame that has it (records.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ARRAY, INT, FLOAT, NONE = "array", "int", "float", "none"
Layout = tuple[Any, ...]  # (ARRAY, dtype, ndim), (INT,), (FLOAT,), (NONE,), or (tuple class, ((field, Layout), ...))


def words(layout: Layout) -> int:
    """How many words a value of this layout takes."""
    if layout[0] == ARRAY:
        return 1 + 2 * int(layout[2])
    if layout[0] in (INT, FLOAT):
        return 1
    return 0 if layout[0] == NONE else sum(words(field) for _, field in layout[1])


class Frame:
    """`value`: a named tuple of arrays in C order, integers, floats, None and named tuples. Arrays may change, but not move: they are kept.

    layout   of `value`, for one value and another the same where types and dimensions are
    address  of the table
    """

    def __init__(self, value: Any):
        self._kept = value
        self._words: list[Any] = []
        self.layout = self._add(value)
        self._table: NDArray[np.int64] = np.array(self._words or [0], np.int64)
        self.address = int(self._table.ctypes.data)

    def _add(self, value: Any) -> Layout:
        if isinstance(value, np.ndarray):
            if not value.flags.c_contiguous:
                raise ValueError("an array of a frame must be contiguous, in C order")
            self._words += [value.ctypes.data, *value.shape, *value.strides]
            return ARRAY, value.dtype.str, value.ndim
        if value is None:
            return (NONE,)
        if isinstance(value, int | np.integer):
            self._words.append(int(value))
            return (INT,)
        if isinstance(value, float | np.floating):
            self._words.append(np.float64(value).view(np.int64))
            return (FLOAT,)
        return type(value), tuple((name, self._add(field)) for name, field in zip(value._fields, value, strict=True))
