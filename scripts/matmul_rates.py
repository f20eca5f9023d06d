"""How near the ternary matmul comes to arithmetic in registers: a layer on one thread, for several numbers of tokens.

    python scripts/matmul_rates.py [2,4,8,9,16,32,128] [rounds] [group]

Without a group, or with 0, the layer is 2B-4T's; with 64, 128 or 256 weights to a scale, bonsai-1.7B's. BITNET_ISA chooses the instruction
set. Half of the rows of each projection, as one of two threads has them, from four layers' weights in turn, which come from memory. Times
are CPU times of the thread, so that other processes take less part in them; the least of the rounds counts. The peak (kernels/peak.py) is
measured between them.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from bitnet_kernels import arrays, grouped, isa, peak
from bitnet_kernels.group_rows import Groups, matrix_bytes, panel_bytes
from bitnet_kernels.operands import Destination, Inputs, Matrix
from bitnet_kernels.ternary import matmul_scaled
from numpy.typing import NDArray

Shapes = tuple[tuple[int, int], ...]
LAYERS, THREADS = 4, 2
PEAK_ROUNDS = max(1, 300_000_000 // (peak.STEPS * peak.PRODUCTS))


def shapes(hidden: int, feed_forward: int, q: int, kv: int) -> Shapes:
    """(rows, cols) of each projection."""
    return (q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (feed_forward, hidden), (feed_forward, hidden), (hidden, feed_forward)


def one_scale(matrices: Shapes, rng: np.random.Generator, tokens: int) -> tuple[Callable[[int], None], int]:
    """Kernels of rows with one scale: what runs a layer by its number, and its products."""
    size = sum(rows * cols // 4 for rows, cols in matrices)
    layers = [rng.integers(0, 256, size + 4096, np.uint8) & 0xAA for _ in range(LAYERS)]
    z = arrays.Sizes(1, matrices[0][1], 20, 5, 128, matrices[-1][1], 32, arrays.RELU2, 1e-5, arrays.HEAD_F16)
    s, out = arrays.new_scratch(z, tokens, 16, 1), np.zeros((tokens, matrices[-1][1]), np.float32)
    s.codes[:] = rng.integers(-127, 128, s.codes.shape)
    x, to = Inputs(s.codes, s.sums, s.factors, tokens), Destination(out, 0, False)

    def run(number: int) -> None:
        at = 0
        for rows, cols in matrices:
            matmul_scaled(Matrix(layers[number], at, cols, np.float32(1)), x, to, s.tile[0], s.block_sums[0], 0, rows // THREADS)
            at += rows * cols // 4

    return run, sum(rows // THREADS * cols * tokens for rows, cols in matrices)


def scale_a_group(matrices: Shapes, rng: np.random.Generator, tokens: int, group: int) -> tuple[Callable[[int], None], int]:
    """The same of rows with a scale a group."""
    groups, widest = Groups(group), max(cols for _, cols in matrices)
    size = sum(matrix_bytes(rows, cols, group) for rows, cols in matrices)
    # Scales are float16 of the same bytes: any but NaN and infinity will do
    layers: list[NDArray[np.uint8]] = [rng.integers(0, 256, size + 4096, np.uint8) & 0xAA for _ in range(LAYERS)]
    z = arrays.Sizes(1, matrices[0][1], 16, 8, 128, matrices[-1][1], 32, arrays.SILU, 1e-6, arrays.HEAD_F16)
    s = arrays.new_scratch(z, tokens, 16, 1, groups)
    s.codes[:] = rng.integers(-127, 128, s.codes.shape)
    room = grouped.Room(s.tile[0], s.block_sums[0], s.groups.totals[0], s.groups.scales[0])
    x = grouped.GroupInputs(s.codes, s.groups.minus, s.groups.steps, tokens)
    to = Destination(np.zeros((tokens, widest), np.float32), 0, False)
    kept = [rows // THREADS // 16 * 16 for rows, _ in matrices]

    def run(number: int) -> None:
        at = 0
        for last, (rows, cols) in zip(kept, matrices, strict=True):
            multiply = grouped.matmul_packed if tokens <= grouped.FEW else grouped.matmul_tiles
            multiply(Matrix(layers[number], at, cols, np.float32(1)), groups, x, to, room, 0, last)
            at += rows // 16 * panel_bytes(cols, group)

    return run, sum(last * cols * tokens for last, (_, cols) in zip(kept, matrices, strict=True))


def main(counts: list[int], rounds: int, group: int) -> None:
    rng = np.random.default_rng(1)
    for tokens in counts:
        if group:
            run, done = scale_a_group(shapes(2048, 6144, 2048, 1024), rng, tokens, group)
        else:
            run, done = one_scale(shapes(2560, 6912, 2560, 640), rng, tokens)
        run(0)
        peak.multiply_bytes(1)
        times, peaks = [], []
        for number in range(rounds):
            start = time.thread_time()
            peak.multiply_bytes(PEAK_ROUNDS)
            peaks.append(time.thread_time() - start)
            start = time.thread_time()
            run(number % LAYERS)
            times.append(time.thread_time() - start)
        most = PEAK_ROUNDS * peak.STEPS * peak.PRODUCTS / min(peaks)
        print(f"{isa.chosen()} {tokens} tokens: {done / min(times) / 1e9:.0f} of {most / 1e9:.0f} GMAC/s, {done / min(times) / most:.0%}")


if __name__ == "__main__":
    given = [*sys.argv[1:], "", "", ""]
    main([int(n) for n in (given[0] or "2,4,8,9,16,32,128").split(",")], int(given[1] or 25), int(given[2] or 0))
