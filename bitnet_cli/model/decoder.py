"""The decoder: token ids -> logits, with a KV cache that remembers what was fed.

`feed(ids)` runs new tokens through all layers and returns the logits of the last one. Long input runs in chunks of CHUNK tokens and a
few layers at a time, so that Ctrl-C is answered between two of them. The kernels do the work (bitnet_kernels.step); this module
allocates what they need, once.
"""

import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bitnet_kernels import arrays, kv_cache
from bitnet_kernels.control import MAX_THREADS, Wanted
from bitnet_kernels.naive import dense, norm
from bitnet_kernels.team import Team
from numpy.typing import NDArray

from bitnet_cli.activations import post_hoc_note, scheme_for
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.dequantise import rows_as_float32
from bitnet_cli.gguf_file.reader import GGUFFile
from bitnet_cli.gguf_file.types import row_bytes
from bitnet_cli.model import base3_rows, columns
from bitnet_cli.model.checks import DEFAULT_CONTEXT, check_model, require_memory
from bitnet_cli.model.head import build_planes, bytes_read, compile_builder
from bitnet_cli.model.weights import (
    embedding_info,
    head_info,
    head_note,
    load_weights,
    packed_shapes,
    projection_shapes,
    rope_tables,
    sizes_of,
)
from bitnet_cli.text.vocabulary import silent_ids

QUERY_TYPES = {"f32": None, "q4": 4}  # bits of arrays.Sizes
CHUNK = 128  # tokens: enough to use each unpacked weight many times, few enough that their activations stay in the L2 cache
PAYS_OFF = 150  # decoded tokens in which decode's layouts (base3_rows.py, columns.py) gain what building them takes (docs/log.md)
WORK_A_CALL = 4e9  # multiply-adds between two chances for Ctrl-C: under 100 ms where two cores do 50e9 a second


class Decoder:
    """One sequence of tokens over one model. Not for two threads at once.

    position   tokens in the cache; the next token fed stands there
    context    most tokens that fit
    scheme     what is done to the inputs of projections, a name of activations.SCHEMES
    note       what a user should know of that, or None
    head_note  what a user should know of a head that is re-coded, or None
    batch      most tokens of one step
    threads    how many compute
    silent     ids that are never chosen, ascending: tokens that the file says are unused, and rows of the head past the tokenizer
    """

    def __init__(
        self,
        file: GGUFFile,
        *,
        context: int = 0,
        threads: int = 1,
        cache_type: str = "f32",
        weight_bits: str = "auto",
        activations: str = "auto",
        query_type: str = "f32",
    ):
        """context: 0 takes 2048, or the model's if smaller; cache_type: of the KV cache, `f32`, `f16`, `q8`, `q4` or `q3`.

        weight_bits: what decode reads, `2` or `1.6` bits a weight, `auto`: what is quicker here (base3_rows.py).

        activations: `auto`, as the model was trained, or `a8`, `a4`, `fp4` (activations.py; `note` says what that means for the text).

        query_type: of attention's queries, `f32` or `q4`: rounded to 4 bits after RoPE, as the cache type q4 does with keys.

        Raises BitnetError where the cache cannot fit in memory.
        """
        self.config = c = check_model(file)
        self.context = context or min(DEFAULT_CONTEXT, c.context)
        if not 1 <= self.context <= c.context:
            raise UsageError(f"context {self.context}: this model was trained for 1 to {c.context} tokens")
        if not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"{threads} threads: expected 1 to {MAX_THREADS}")
        if cache_type not in kv_cache.CACHE_TYPES:
            *most, last = kv_cache.CACHE_TYPES
            raise UsageError(f"cache type {cache_type}: expected {', '.join(most)} or {last}")
        if query_type not in QUERY_TYPES:
            raise UsageError(f"query type {query_type}: expected {' or '.join(QUERY_TYPES)}")
        self.cache_type = cache_type
        self.scheme = scheme_for(c.trained_scheme, activations, c.activation == "relu2", str(file.path))
        self.note = post_hoc_note(c.trained_scheme, self.scheme)
        require_memory(c, self.context, cache_type)
        self.position = 0
        self.threads, self._planes_built = threads, False
        cos, sin = rope_tables(file, c, self.context)
        self._sizes = sizes_of(file, c, self.scheme, QUERY_TYPES[query_type])
        self.silent = np.array(silent_ids(file.metadata, str(file.path), c.vocab), np.int64)
        weights = load_weights(file, c, cos, sin, self.silent, threads)
        if len(weights.part_at) and c.float_activations is not False:
            self._sizes = self._sizes._replace(digits=2)
        self._weights, self._base3 = base3_rows.reserve(weights, c, packed_shapes(c), weight_bits)
        self._columns_decided = bool(self._sizes.hadamard)  # after the transform no input of `down` is zero
        self._decoded, self._path = 0, str(file.path)
        self._until: int | None = None
        self._embedding, self._embedding_bytes = embedding_info(file), file.raw("token_embd.weight")
        self.head_note = head_note(file)
        self._head_bytes = weights.head.size if self.head_note else head_info(file).nbytes
        self._cache = kv_cache.new_cache(c.layers, c.kv_heads, c.head_dim, self.context, cache_type)
        self.batch = self._chunk = min(CHUNK, self.context)
        self._wanted: Sequence[Wanted] = ()  # of the last step
        self._scratch = arrays.new_scratch(self._sizes, self._chunk, self.context, threads)
        descriptor = file.descriptor(head_info(file)) if len(self._weights.planes.scales) and os.name != "nt" else None
        if descriptor is not None:
            self._weights.head_file[0] = descriptor
            weakref.finalize(self, os.close, descriptor)
        self._team = Team(self._sizes, self._weights, self._cache, self._scratch, threads)

    def start(self) -> None:
        """Compile the kernels (seconds, once on a machine) or load them (a third of a second), and start the threads."""
        self._team.start()
        if len(self._weights.planes.scales):
            compile_builder()
        if len(self._weights.columns):
            columns.compile_builder(self._weights)
        base3_rows.compile_builder(self._weights, self._base3)

    def expect(self, tokens: int | None) -> None:
        """At most so many tokens will be decoded next; None: nobody knows. For a short text no layouts are built: it would end later."""
        self._until = None if tokens is None else self._decoded + tokens

    def cache_bytes(self) -> int:
        """Bytes of the KV cache when full."""
        c = self.config
        return kv_cache.cache_bytes(self.cache_type, c.layers, c.kv_heads, c.head_dim, self.context)

    def bytes_a_token(self, searched: bool = True) -> float:
        """Bytes of weights that decoding one token has read on average: ternary rows and head, without what was skipped. No KV cache.

        searched: for tokens whose top logits only were asked for, where the head has planes; else the head is read whole.
        """
        return self.ternary_bytes_a_token() + self.head_bytes_a_token(searched)

    def ternary_bytes_a_token(self) -> float:
        """The ternary part of `bytes_a_token`."""
        return sum(self.projection_bytes_a_token())

    def projection_bytes_a_token(self) -> list[float]:
        """That part by projection, of all layers, in the order of arrays.Q to arrays.DOWN."""
        c = self.config
        a_weight = len(self._weights.base3) / c.ternary_weights if self._weights.base3_built[0] else 0.25
        sizes = [c.layers * rows * cols * a_weight for rows, cols in projection_shapes(c)]
        seen, by_columns = self._scratch.counts[:, 0].sum(), self._scratch.column_counts[0, 0]
        sizes[arrays.UP] *= 1 - self.skipped_share()
        columns = c.layers * c.hidden * c.feed_forward * (1 - self.skipped_columns_share()) / 4  # of 2 bits a weight
        sizes[arrays.DOWN] += float(by_columns / max(seen, 1)) * (columns - sizes[arrays.DOWN])
        return sizes

    def kernel_arrays(self) -> tuple[arrays.Sizes, arrays.Weights, kv_cache.AnyCache, arrays.Scratch]:
        """What kernels work on. For measuring only."""
        return self._sizes, self._weights, self._cache, self._scratch

    def head_bytes_a_token(self, searched: bool = True) -> float:
        """The head's part of `bytes_a_token`."""
        return float(bytes_read(self._sizes, len(self._weights.planes.ids), self.head_rows()) * searched or self._head_bytes)

    def cache_bytes_at(self, position: int) -> float:
        """Bytes of the KV cache that decoding a token at a position reads: keys and values up to its own, or of the window."""
        c = self.config
        whole = 1 << 20
        each = kv_cache.cache_bytes(self.cache_type, 1, c.kv_heads, c.head_dim, whole) / whole
        return sum(each * min(position + 1, int(window)) for window in self._weights.windows)

    def reset_counts(self) -> None:
        """Forget what was read and skipped so far: averages begin anew."""
        s = self._scratch
        for counts in (s.counts, s.column_counts, s.head_counts):
            counts[:] = 0

    def time_part(self, tokens: int, position: int, layers: int, logits: int, top: int = 0) -> float:
        """Seconds of the first `layers` layers, and of some logits, over the states that the last step left. For measuring only.

        tokens: how many, at most a chunk, from `position` on, which is not past the cache's end; they overwrite what the cache holds there
        and are not counted as fed. Weights are read as `feed` reads them. logits: of so many of the tokens, the last ones; top: as there.
        """
        if not 1 <= tokens <= self._chunk or not 0 <= position <= min(self.position, self.context - tokens):
            raise ValueError(f"{tokens} tokens at {position}: expected 1 to {self._chunk}, at 0 to {self.position}, inside {self.context}")
        states = self._scratch.x[:tokens]
        before, wanted = states.copy(), self.wanted(range(tokens - logits, tokens), top)
        start = time.perf_counter()
        self._team.run(tokens, position, 0, layers, wanted)
        seconds = time.perf_counter() - start
        states[:] = before
        return seconds

    def cache_parts(self, positions: int) -> list[NDArray[Any]]:
        """The KV cache of the first `positions` tokens, as views of its arrays: what is written there is what the decoder holds."""
        lengths = {"keys": -(-positions // 16), "first_key": None, "first_value": None}  # keys lie in blocks of 16 positions
        return [array[:, :, : lengths.get(name, positions)] for name, array in self._cache._asdict().items()]

    def head_rows(self) -> NDArray[np.int64]:
        """Rows of the head read by all searches for top logits: upper six bits, last two, exact. (3,). A search may be for many tokens."""
        rows: NDArray[np.int64] = self._scratch.head_counts.sum(0)
        return rows

    def feed(self, ids: Sequence[int], top: int = 0, progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """Append tokens; returns the logits of the last one, (vocab,) float32, valid until the next call.

        top: how many of the largest logits are needed, without those of `silent` ids; others may be minus infinity, which spares reading
        most of the head. 0: all, also those of `silent` ids, as the model computes them.
        progress(done, all) is called after every chunk of tokens.
        UsageError: no token, a token outside the vocabulary, or more than the context holds.
        """
        self._check(ids)
        if len(ids) == 1:
            self._decoded += 1
            pays = self._until is None or max(self._decoded, self._until - self._decoded) >= PAYS_OFF
            if pays or self._base3.required:
                self._perhaps_build_base3()
            if pays:
                self._perhaps_build_columns()
        for start in range(0, len(ids), self._chunk):
            part = ids[start : start + self._chunk]
            self._layers(part, self.wanted([len(part) - 1], top) if start + len(part) == len(ids) else ())
            if progress:
                progress(start + len(part), len(ids))
        return self._logits(0)

    def feed_batch(self, ids: Sequence[int], top: int = 0) -> NDArray[np.float32]:
        """Append tokens, at most `batch` of them, in one step; returns the logits of each, (len(ids), vocab), valid until the next call.

        They are the same as `feed` gives of one token after the other; top: as there.
        """
        self._check(ids)
        if len(ids) > self.batch:
            raise ValueError(f"{len(ids)} tokens in one step, expected at most {self.batch}")
        self._layers(ids, self.wanted(range(len(ids)), top))
        return self._scratch.logits[: len(ids)]

    def logits_of(self, row: int, top: int = 0) -> NDArray[np.float32]:
        """Other logits than before of token `row` of the last step, which gave some; top: as in `feed`. Those of other tokens stay.

        row: of the last `feed_batch`; -1: the last token, also of `feed`.
        """
        known = {asked.row: asked.place for asked in self._wanted}
        row = max(known, default=row) if row == -1 else row
        if row not in known:
            raise ValueError(f"row {row} of the last step, which gave logits of {len(known)}")
        layers = self.config.layers
        self._team.run(row + 1, self.position, layers, layers, self.wanted([row], top, known[row]))
        return self._logits(known[row])

    def _logits(self, place: int) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._scratch.logits[place]
        return logits

    def wanted(self, rows: Sequence[int], top: int, place: int = 0) -> list[Wanted]:
        """What a step is asked for: logits of these rows, in places from `place` on. Planes of the head are built if they are needed."""
        top = self._prepare_head(top) if rows else 0
        return [Wanted(row, top, place + i) for i, row in enumerate(rows)]

    def states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """As `feed`, but what the head would see of every token, after the output norm: (len(ids), hidden) float32, a new array."""
        self._check(ids)
        c, w = self.config, self._weights
        rows = []
        at = int(w.norm_offsets[c.layers, 0])
        for start in range(0, len(ids), self._chunk):
            part = ids[start : start + self._chunk]
            self._layers(part)
            rows.append(norm.rms_norm(self._scratch.x[: len(part)], w.norms[at : at + c.hidden], c.norm_eps))
        return np.concatenate(rows)

    def feed_all(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """As `feed`, but the logits of every token: (len(ids), vocab) float32, a new array."""
        c, w, states = self.config, self._weights, self.states(ids)
        logits = np.empty((len(ids), c.vocab), np.float32)
        for first in range(0, c.vocab, 4096):
            last = min(first + 4096, c.vocab)
            matrix = dense.rows(w.head, int(w.head_offset[0]), self._sizes.head_kind, first, last, c.hidden)
            np.matmul(states, matrix.T, out=logits[:, first:last])
        return logits

    def _prepare_head(self, top: int) -> int:
        """How many of the largest logits to ask a step for: `top` where the head has planes, 0 elsewhere. Builds the planes at first."""
        if not 0 < top <= arrays.MAX_TOP or not len(self._weights.planes.scales):
            return 0
        if not self._planes_built:
            build_planes(self._sizes, self._weights, self.threads)
            self._planes_built = True
        return min(top, len(self._weights.planes.ids))

    def _perhaps_build_base3(self) -> None:
        """Once, before the decoded token that the plan says."""
        if self._base3.shapes and self._decoded > self._base3.after:
            plan, self._base3 = self._base3, self._base3._replace(shapes=())
            base3_rows.build(self._weights, plan, self.threads, self._path)

    def _perhaps_build_columns(self) -> None:
        """Once, after a few decoded tokens: store `down` by columns where enough of the tokens' hidden units were zero."""
        if self._columns_decided or self._scratch.counts[:, 0].sum() < columns.DECIDE_AFTER * self.config.layers * self.config.feed_forward:
            return
        self._columns_decided = True
        enough = columns.SPARSE_BESIDE_BASE3 if self._weights.base3_built[0] else columns.SPARSE
        if len(self._weights.columns) and self.skipped_share() >= enough:
            columns.build_columns(self._sizes, self._weights, self.threads)

    def skipped_columns_share(self) -> float:
        """Share of the columns that decode did not read where it read `down` by columns; 0 where it never did."""
        seen, skipped = self._scratch.column_counts[0].tolist()
        return skipped / seen if seen else 0.0

    def skipped_share(self) -> float:
        """Share of the `up` projection's rows that decode did not read, because their gate was an exact zero. 0 where none can be."""
        seen, skipped = self._scratch.counts.sum(0).tolist()
        return skipped / seen if seen else 0.0

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on."""
        if not 0 <= position <= self.position:
            raise ValueError(f"position must be 0 to {self.position}, not {position}")
        self.position = position

    def close(self) -> None:
        """End the worker threads."""
        self._team.close()

    def _check(self, ids: Sequence[int]) -> None:
        if not len(ids):
            raise UsageError("no tokens to process")
        if self.position + len(ids) > self.context:
            raise UsageError(f"{self.position + len(ids)} tokens do not fit the context of {self.context}; use a larger -c or less text")
        if min(ids) < 0 or max(ids) >= self.config.vocab:
            raise UsageError(f"token ids must be 0 to {self.config.vocab - 1}")

    def embedding_rows(self, ids: Sequence[int], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """What the layers begin with: (>= len(ids), hidden) float32, in `out` where given."""
        c, kind = self.config, self._embedding.type
        states = np.empty((len(ids), c.hidden), np.float32) if out is None else out
        size = row_bytes(kind, c.hidden)
        raw = np.concatenate([self._embedding_bytes[token * size : (token + 1) * size] for token in ids])
        rows = rows_as_float32(kind, raw, c.hidden)
        np.multiply(rows, np.float32(c.embedding_scale), out=states[: len(ids)])  # by 1 nothing changes
        return states

    def _layers(self, ids: Sequence[int], wanted: Sequence[Wanted] = ()) -> None:
        """Run at most one chunk through all layers, then the head for what is wanted, and count it as fed."""
        c, count, self._wanted = self.config, len(ids), ()
        self.embedding_rows(ids, self._scratch.x)
        layers = max(1, int(WORK_A_CALL * c.layers / (c.ternary_weights * count)))
        for first in range(0, c.layers, layers):
            last = min(first + layers, c.layers)
            self._team.run(count, self.position, first, last, wanted if last == c.layers else ())
        self.position += count
        self._wanted = wanted
