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
        self.scratch = arrays.new_scratch(self.sizes, arrays.TOGETHER, 16, threads)

    def search(self, tokens: Floats, tops: Sequence[int]) -> Floats:
        """The logits of tokens, (tokens, hidden), each with its top, by one search; their places held something else before."""
        count, s = len(tokens), self.scratch
        s.logits[:count] = 1e30
        s.head_counts[:] = 0
        s.normed[:count, : self.hidden] = tokens
        s.wanted[:count] = [control.Wanted(0, top, count - 1 - place) for place, top in enumerate(tops)]
        s.listed[:, :count] = np.arange(count)
        if self.threads > 1 and not head_search.top_logits.signatures:
            self.compile()

        def work(thread: int) -> None:
            head_search.top_logits(
                self.weights, self.sizes, s, s.listed[thread], 0, count, np.int64(thread), np.int64(self.threads), self.control
            )

        others = [threading.Thread(target=work, args=(i,)) for i in range(1, self.threads)]
        for other in others:
            other.start()
        work(0)
        for other in others:
            other.join()
        return s.logits[:count][::-1]

    def compile(self) -> None:
        """Alone, so that no thread waits for one that compiles."""
        one = arrays.new_scratch(self.sizes, 4, 16, 1)
        one.wanted[0] = control.Wanted(0, 1)
        head_search.top_logits(self.weights, self.sizes, one, one.listed[0], 0, 1, np.int64(0), np.int64(1), self.control)

    def all_rows(self) -> Floats:
        return naive_dense.rows(self.data, OFFSET, int(self.kind), 0, self.vocab, self.hidden)

    def all(self, x: Floats) -> Floats:
        out = np.zeros(self.vocab, np.float32)
        dense.head_matvec(dense.HeadRows(self.data, OFFSET, int(self.kind), self.hidden), x, out, 0, self.vocab)
        return out

    def check(self, x: Floats, top: int) -> dict[str, Any]:
        return self.check_all(x[None], [top])

    def check_all(self, tokens: Floats, tops: Sequence[int]) -> dict[str, Any]:
        """Of all tokens together, which are searched at once."""
        lost = wrong = 0
        logits = self.search(tokens, tops)
        computed = int(self.scratch.head_counts.sum(0)[2])
        for x, top, found in zip(tokens, tops, logits, strict=True):
            exact = self.all(x)
            exact[np.setdiff1d(np.arange(self.vocab), self.planes.ids)] = -np.inf
            wrong += self.spoken(found)
            if np.isnan(exact).any():
                lost += int((np.isnan(exact) != np.isnan(found)).sum())
                continue
            largest = naive.top_logits(self.planes, exact, top)
            lost += int((found != largest)[largest != -np.inf].sum())
            wrong += int(((found != exact) & (found != -np.inf)).sum())
        return {"lost": lost, "wrong": wrong, "exact": computed}

    def spoken(self, found: Floats) -> int:
        """Rows without planes that have a logit, or bytes of rows read that are none of the planes'."""
        silent = np.setdiff1d(np.arange(self.vocab), self.planes.ids)
        return int((found[silent] != -np.inf).sum()) + abs(int(self.scratch.head_counts.sum(0)[0]) - len(self.planes.ids))

    def loose(self) -> int:
        """Rows that are further from 6 or 8 bits of themselves, or from nothing, than `errors` says, or by far nearer (5 %)."""
        rows = self.all_rows().astype(np.float64)[self.planes.ids]
        count = 0
        for step, bits in enumerate((6, 8, 0)):
            near = naive.values(self.planes, self.hidden, head_planes.WIDTH, bits) if bits else 0.0
            distance, said = np.linalg.norm(rows - near, axis=1), self.planes.errors[step]
            count += int(((distance > said) | (said > 1.05 * distance + 1e-5 * np.abs(rows).max(1) * np.sqrt(self.hidden) + 1e-28)).sum())
        return count
