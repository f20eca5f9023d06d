"""A head of a type that no kernel multiplies by -> the same matrix as Q8_0, in memory of our own, made when the model is opened.

Rows are taken apart a few at a time, by all threads, and the file's pages are given back: what stays is 34 bytes for 32 weights, 349 MB
for 128,256 x 2,560, which takes under a second with two threads (docs/log.md). Every weight is then off by at most

    max|w| / 254 (1 + 2^-10) + 2^-25            0.4 % of the largest of its block of 32 (bitnet_kernels/recode.py)

The embedding is not touched: its rows are dequantised when a token asks for them.
"""

import numpy as np
from bitnet_kernels import arrays, isa
from bitnet_kernels.frame import Frame
from bitnet_kernels.native import Entry
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo
from bitnet_cli.gguf_file.types import row_bytes
from bitnet_cli.machine.memory import give_back, zeros_on_huge_pages
from bitnet_cli.machine.threads import split
from bitnet_cli.tensors.block_codes import Coded
from bitnet_cli.tensors.dequantise import coded

RECODED = arrays.HEAD_Q8_0  # what the kernels then read
_RECODE = Entry("recode", "recode_rows")
CHUNK_WEIGHTS = 1 << 20  # weights at once: a few MB, and NumPy gives up the GIL for so long that threads hardly wait for each other
GIVE_BACK = 16 << 20  # bytes of the file that are read between two times that pages are given back
NO_MINIMA = np.zeros(0, np.float32)


def recode_note(info: TensorInfo) -> str:
    """What a user should know of a head that is re-coded."""
    return (
        f"{info.name} is {info.type.name}, which makes no logits as it is: re-coded to Q8_0 in memory, each weight off by at most "
        "0.4 % of the largest of its block of 32"
    )


def recoded(file: GGUFFile, info: TensorInfo, threads: int) -> NDArray[np.uint8]:
    """(rows * cols / 32 * 34,) uint8, read-only: a matrix of codes in an open file as Q8_0.

    UnsupportedError: weights beyond 8.3e6, which Q8_0 cannot hold. BadFileError: scales that are no numbers.
    """
    rows, cols = info.shape
    _, size = arrays.HEAD_BLOCKS[RECODED]
    data, stride, out_stride = file.file_bytes(), row_bytes(info.type, cols), cols // 32 * size
    result = zeros_on_huge_pages(rows * out_stride)
    step, failures = max(1, CHUNK_WEIGHTS // cols), []  # type: int, list[BaseException]

    def some(begin: int, end: int) -> None:
        parts = coded(info.type, data[info.offset + begin * stride : info.offset + end * stride])
        if not (np.isfinite(parts.scales).all() and (parts.minima is None or np.isfinite(parts.minima).all())):
            raise BadFileError(file.path, f"tensor {info.name}", "holds values that are not finite", info.offset + begin * stride)
        _encode(parts, result, begin * out_stride)

    def work(first: int, last: int) -> None:
        given = first
        try:
            for begin in range(first, last, step):
                end = min(begin + step, last)
                some(begin, end)
                if failures:
                    return
                if (end - given) * stride >= GIVE_BACK or end == last:
                    give_back(data, info.offset + given * stride, info.offset + end * stride)
                    given = end
        except BaseException as error:  # of another thread it would be lost
            failures.append(error)

    some(0, 1)  # what is imported and compiled once, before threads need it
    split(work, rows, threads)
    if failures:
        raise failures[0]
    scales = result.reshape(-1, size)[:, :2].copy().view("<u2")
    if ((scales & 0x7C00) == 0x7C00).any():
        raise UnsupportedError(f"{file.path}: tensor {info.name}: {info.type.name} weights beyond 8.3e6, the range of Q8_0")
    result.flags.writeable = False  # as the memory map
    return result


def compile_recoder() -> None:
    """Compile what `recoded` calls."""
    _RECODE.over(Frame(arrays.RecodeFrame(np.zeros(0, np.int8), NO_MINIMA, NO_MINIMA, np.zeros(0, np.uint8))), 2)


def _encode(parts: Coded, out: NDArray[np.uint8], at: int) -> None:
    minima = NO_MINIMA if parts.minima is None else parts.minima
    if isa.chosen() == isa.NAIVE:
        from bitnet_kernels.naive import recode

        recode.q8_0_rows(parts.codes, parts.scales, minima, out, at)
        return
    codes, scales = np.ascontiguousarray(parts.codes), np.ascontiguousarray(parts.scales)
    frame = Frame(arrays.RecodeFrame(codes, scales, np.ascontiguousarray(minima), out))
    _RECODE.over(frame, 2)(len(codes) // len(scales), at)
