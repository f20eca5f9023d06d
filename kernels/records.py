"""Numba's view of a frame (frame.py): a pointer whose attributes are read where they are used.

A kernel written for named tuples takes a record as it is: `w.scales[layer, DOWN]`, `len(s.fine_codes)`. A tuple of 60 arrays would be 400
numbers, passed again in every call between kernels; a record is one address, and a kernel loads what it uses.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, register_model
from numba.np.arrayobj import make_array
from numba.np.numpy_support import from_dtype

from .frame import ARRAY, FLOAT, INT, NONE, Layout, words

_I64 = ir.IntType(64)


class Record(types.Type):
    """A pointer to a tuple in a frame. instance_class: the tuple's, as Numba's own types of named tuples call it."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.instance_class = layout[0]
        super().__init__(name=f"Record({_text(layout)})")


def _text(layout: Layout) -> str:
    if isinstance(layout[0], str):
        return " ".join(str(part) for part in layout)
    return f"{layout[0].__name__}({', '.join(f'{name}: {_text(field)}' for name, field in layout[1])})"


def _numba_type(layout: Layout) -> types.Type:
    if layout[0] == ARRAY:
        return types.Array(from_dtype(np.dtype(layout[1])), layout[2], "C")
    return {INT: types.int64, FLOAT: types.float64, NONE: types.none}.get(layout[0]) or Record(layout)


@register_model(Record)
class _RecordModel(models.OpaqueModel):
    """An address without a type."""


@infer_getattr
class _Attributes(AttributeTemplate):
    key = Record

    def generic_resolve(self, record: Any, name: str) -> Any:
        field = dict(record.layout[1]).get(name)
        return None if field is None else _numba_type(field)


@lower_getattr_generic(Record)
def _load_attribute(context: Any, builder: Any, record: Any, pointer: Any, name: str) -> Any:
    at = 0
    for field, layout in record.layout[1]:
        if field == name:
            return _load(context, builder, layout, pointer, at)
        at += words(layout)
    raise AttributeError(name)


def _load(context: Any, builder: Any, layout: Layout, pointer: Any, at: int) -> Any:
    place = builder.gep(pointer, [ir.Constant(_I64, 8 * at)])
    kind = _numba_type(layout)
    if isinstance(kind, Record):
        return place
    if layout[0] == NONE:
        return context.get_dummy_value()
    if layout[0] != ARRAY:
        return _word(builder, place, context.get_value_type(kind))
    array, ndim = make_array(kind)(context, builder), layout[2]
    numbers = [_word(builder, builder.gep(pointer, [ir.Constant(_I64, 8 * (at + 1 + i))]), _I64) for i in range(2 * ndim)]
    array.meminfo, array.parent = cgutils.get_null_value(array.meminfo.type), cgutils.get_null_value(array.parent.type)
    array.data = _word(builder, place, array.data.type)
    array.shape, array.strides = (cgutils.pack_array(builder, part, ty=_I64) for part in (numbers[:ndim], numbers[ndim:]))
    array.itemsize = ir.Constant(_I64, np.dtype(layout[1]).itemsize)
    count = ir.Constant(_I64, 1)
    for number in numbers[:ndim]:
        count = builder.mul(count, number)
    array.nitems = count
    return array._getvalue()


def _word(builder: Any, place: Any, kind: Any) -> Any:
    """A word of the table, which no kernel writes: LLVM may load it once for a loop, whatever is stored in between."""
    word = builder.load(builder.bitcast(place, kind.as_pointer()))
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return word
