"""How near the ternary matmul comes to arithmetic in registers: a layer of 2B-4T on one thread, for several numbers of tokens.

    python scripts/matmul_rates.py [2,4,8,9,16,32,128] [rounds]

BITNET_ISA chooses the instruction set. Half of the rows of each projection, as one of two threads has them, from four layers' weights in
turn, which come from memory. Times are CPU times of the thread, so that other processes take less part in them; the least of the rounds
counts. The peak (kernels/peak.py) is measured between them.
"""

import sys
import time

import numpy as np
from bitnet_kernels import arrays, isa, peak
from bitnet_kernels.operands import Destination, Inputs, Matrix
from bitnet_kernels.ternary import matmul_scaled
from numpy.typing import NDArray

HIDDEN, FEED_FORWARD, KV = 2560, 6912, 640
MATRICES = (
    (HIDDEN, HIDDEN),
    (KV, HIDDEN),
    (KV, HIDDEN),
    (HIDDEN, HIDDEN),
    (FEED_FORWARD, HIDDEN),
    (FEED_FORWARD, HIDDEN),
    (HIDDEN, FEED_FORWARD),
)
LAYERS, THREADS = 4, 2
PEAK_ROUNDS = max(1, 300_000_000 // (peak.STEPS * peak.PRODUCTS))


def run_layer(packed: NDArray[np.uint8], tokens: int, scratch: arrays.Scratch, out: NDArray[np.float32]) -> None:
    """Every projection of one layer. packed: (bytes,) of all its rows."""
    at, s = 0, scratch
    x, to = Inputs(s.codes, s.sums, s.factors, tokens), Destination(out, 0, False)
    for rows, cols in MATRICES:
        last = rows // THREADS
        matmul_scaled(Matrix(packed, at, cols, np.float32(1)), x, to, s.tile[0], s.block_sums[0], 0, last)
        at += rows * cols // 4


def main(counts: list[int], rounds: int) -> None:
    size = sum(rows * cols // 4 for rows, cols in MATRICES)
    rng = np.random.default_rng(1)
    layers = [rng.integers(0, 256, size + 4096, np.uint8) & 0xAA for _ in range(LAYERS)]
    z = arrays.Sizes(1, HIDDEN, 20, 5, 128, FEED_FORWARD, 32, arrays.RELU2, 1e-5, arrays.HEAD_F16)
    for tokens in counts:
        scratch, out = arrays.new_scratch(z, tokens, 16, 1), np.zeros((tokens, FEED_FORWARD), np.float32)
        scratch.codes[:] = rng.integers(-127, 128, scratch.codes.shape)
        run_layer(layers[0], tokens, scratch, out)
        peak.multiply_bytes(1)
        times, peaks = [], []
        for number in range(rounds):
            start = time.thread_time()
            peak.multiply_bytes(PEAK_ROUNDS)
            peaks.append(time.thread_time() - start)
            start = time.thread_time()
            run_layer(layers[number % LAYERS], tokens, scratch, out)
            times.append(time.thread_time() - start)
        done = sum(rows * cols for rows, cols in MATRICES) // THREADS * tokens
        most = PEAK_ROUNDS * peak.STEPS * peak.PRODUCTS / min(peaks)
        print(f"{isa.chosen()} {tokens} tokens: {done / min(times) / 1e9:.0f} of {most / 1e9:.0f} GMAC/s, {done / min(times) / most:.0%}")


if __name__ == "__main__":
    main(
        [int(n) for n in (sys.argv[1] if len(sys.argv) > 1 else "2,4,8,9,16,32,128").split(",")],
        int(sys.argv[2]) if len(sys.argv) > 2 else 25,
    )
