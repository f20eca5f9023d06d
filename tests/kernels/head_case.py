"""A head with planes, to be searched for its top logits and compared with all of them."""

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bitnet_kernels import arrays, control, dense, head_planes, head_search
from bitnet_kernels.naive import dense as naive_dense
from bitnet_kernels.naive import head_planes as naive
from numpy.typing import NDArray
from tiny_model import head_bytes

Floats = NDArray[np.float32]
OFFSET = 6


class Head:
    """A (vocab, hidden) matrix of a head kind, its planes, and the scratch of `threads` threads. silent: rows that have no planes."""

    def __init__(self, matrix: Floats, kind: int, threads: int, silent: Sequence[int] = ()):
        self.vocab, self.hidden = matrix.shape
        self.kind, self.threads, self.control = np.int64(kind), threads, control.new_control()
        nothing, one = np.zeros(1, np.float32), np.zeros((1, 1), np.float32)
        self.data = np.concatenate([np.full(OFFSET, 0xFF, np.uint8), head_bytes(matrix, kind)])
        self.planes = arrays.new_planes(self.vocab, self.hidden, head_planes.WIDTH, np.array(silent, np.int64))
        rows = len(self.planes.ids)
        codes = np.full(arrays.padded(self.hidden), 99, np.uint8)
        head_planes.build(self.data, OFFSET, self.kind, self.hidden, self.planes, np.zeros(self.hidden, np.float32), codes, 0, rows)
        offsets, scales = np.zeros((1, 7), np.int64), np.zeros((1, 7), np.float32)
        layers, columns = (offsets[0], offsets[0]), (np.zeros(0, np.uint8), np.zeros(1, np.int64))
        # With several threads single rows come from a file, else from memory.
        descriptor, path = tempfile.mkstemp()
        os.write(descriptor, self.data.tobytes())
        Path(path).unlink()  # a plain descriptor, open until the process ends
        opened = np.array([descriptor if threads > 1 else -1])
        self.weights = arrays.Weights(
            self.data, offsets, scales, nothing, offsets, self.data, np.array([OFFSET]), opened, one, one, *layers, self.planes, *columns
        )
        self.sizes = arrays.Sizes(1, self.hidden, 1, 1, self.hidden, self.hidden, self.vocab, 0, 1e-5, kind)
        self.scratch = arrays.new_scratch(self.sizes, 4, 16, threads)

    def search(self, x: Floats, top: int) -> Floats:
        """The logits, whose place held something else before."""
        self.scratch.logits[0] = 1e30
        self.scratch.head_counts[:] = 0

        def work(thread: int) -> None:
            head_search.top_logits(
                self.weights,
                self.sizes,
                x,
                self.scratch,
                self.scratch.logits[0],
                np.int64(top),
                np.int64(thread),
                np.int64(self.threads),
                self.control,
            )

        if self.threads > 1 and not head_search.top_logits.signatures:
            self.compile(x)
        others = [threading.Thread(target=work, args=(i,)) for i in range(1, self.threads)]
        for other in others:
            other.start()
        work(0)
        for other in others:
            other.join()
        return self.scratch.logits[0]

    def compile(self, x: Floats) -> None:
        """Alone, so that no thread waits for one that compiles."""
        one = arrays.new_scratch(self.sizes, 4, 16, 1)
        head_search.top_logits(self.weights, self.sizes, x, one, one.logits[0], np.int64(1), np.int64(0), np.int64(1), self.control)

    def all(self, x: Floats) -> Floats:
        out = np.zeros(self.vocab, np.float32)
        dense.head_matvec(self.data, np.int64(OFFSET), self.kind, self.hidden, x, out, 0, self.vocab)
        return out

    def check(self, x: Floats, top: int) -> dict[str, Any]:
        found, exact = self.search(x, top), self.all(x)
        exact[np.setdiff1d(np.arange(self.vocab), self.planes.ids)] = -np.inf
        computed = int(self.scratch.head_counts.sum(0)[3])
        if np.isnan(exact).any():
            return {"lost": int((np.isnan(exact) != np.isnan(found)).sum()), "wrong": self.spoken(found), "exact": computed}
        largest = naive.top_logits(self.planes, exact, top)
        lost = int((found != largest)[largest != -np.inf].sum())
        wrong = int(((found != exact) & (found != -np.inf)).sum()) + self.spoken(found)
        return {"lost": lost, "wrong": wrong, "exact": computed}

    def spoken(self, found: Floats) -> int:
        """Rows without planes that have a logit, or bytes of rows read that are none of the planes'."""
        silent = np.setdiff1d(np.arange(self.vocab), self.planes.ids)
        return int((found[silent] != -np.inf).sum()) + abs(int(self.scratch.head_counts.sum(0)[0]) - len(self.planes.ids))

    def loose(self) -> int:
        """Rows that are further from 4, 6 or 8 bits of themselves than `errors` says, or by far nearer (5 %)."""
        rows = naive_dense.rows(self.data, OFFSET, int(self.kind), 0, self.vocab, self.hidden).astype(np.float64)[self.planes.ids]
        count = 0
        for step, bits in enumerate((4, 6, 8)):
            near = naive.values(self.planes, self.hidden, head_planes.WIDTH, bits)
            distance, said = np.linalg.norm(rows - near, axis=1), self.planes.errors[:, step]
            count += int(((distance > said) | (said > 1.05 * distance + 1e-5 * np.abs(rows).max(1) * np.sqrt(self.hidden) + 1e-29)).sum())
        return count
