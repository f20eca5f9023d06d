"""Whole codes of the head's planes times the activations of up to 16 tokens, by AMX. Used by head_sums.py.

64 rows, 16 of each stream, meet all tokens at once, so that planes are read and put together once. A row's codes are a line of a tile, as
they are put together; what is turned are the activations, once a search. Integers: the sums of eight_bit_sums.
"""

import numpy as np

from .jit import inlined, kernel
from .row_sums import bytes_of, four_of, further
from .simd import matrix, plane_codes, vectors

STREAMS, ROWS, LINE, START = 4, matrix.ROWS, np.int64(matrix.BYTES), np.int64(0)
TOKENS, SUMS = matrix.ROWS, STREAMS * ROWS  # sums of each token
AHEAD = 1920  # bytes ahead in each stream; 5,760, three rows of 2,560 columns, are too many for L1 (docs/log.md#panel-prefetch)
clear_sums, add_products, store_sums = matrix.unsigned_operations(STREAMS)
begin_tiles, end_tiles, store_codes = matrix.begin, matrix.end, plane_codes.store_codes
flattened, prefetch_to_l2 = vectors.flattened, vectors.prefetch_to_l2


@kernel
def turn(digits, count, turned):
    """Words of four codes of `count` rows of digits -> word w of TOKENS tokens, then the next word; then those of the next tokens."""
    words, length = flattened(digits).view(np.int32), digits.shape[1] // 4
    for v in range(count):
        place = v // TOKENS * TOKENS * length + v % TOKENS
        for w in range(length):
            turned[place + w * TOKENS] = words[v * length + w]


@inlined
def _line(stride):
    """Bytes from one row's codes to the next: at multiples of 4 KiB the lines of a tile would meet in one place of the L1 cache."""
    return stride // 3 * 4 + LINE


@kernel
def keep_codes(planes, first, quarter, end, stride, codes):
    """Codes of ROWS rows of each stream, from row `first` on -> codes: (>= SUMS * (4 / 3 stride + 64),) uint8.

    Streams are `quarter` rows apart; rows past `end` are that one. planes: (six, low); stride: bytes of six.
    """
    line = _line(stride)
    for i in range(ROWS):
        starts = bytes_of(four_of(first + i, quarter, end), START, stride)
        ahead = further(starts, AHEAD)
        for byte in range(0, stride // 3, LINE):
            for stream in range(STREAMS):
                store_codes(planes, starts[stream], ahead[stream], byte, codes, (stream * ROWS + i) * line + 4 * byte, LINE)


@kernel
def tile_sums(planes, following, stride, turned, codes, out, at):
    """out[at + t SUMS + stream ROWS + i] = sum of codes of row i of each stream with token t, whose words `turned` has; i < ROWS.

    following: rows that come next, one of each stream. The last SUMS * TOKENS of out are overwritten.
    """
    line, starts = _line(stride), bytes_of(following, START, stride)
    clear_sums()
    for k in range(0, line - LINE, LINE):
        for stream in range(STREAMS):  # memory does not wait for products
            for part in range(3):
                prefetch_to_l2(planes[0], starts[stream] + 3 * k + part * LINE)
            prefetch_to_l2(planes[1], starts[stream] // 3 + k)
        add_products(codes, k, ROWS * line, line, turned, k // 4 * TOKENS)
    by_row = out[len(out) - SUMS * TOKENS :]
    store_sums(by_row, 0, SUMS)
    for t in range(TOKENS):
        for stream in range(STREAMS):
            for i in range(ROWS):
                out[at + t * SUMS + stream * ROWS + i] = by_row[i * SUMS + stream * TOKENS + t]
