"""The engine: weights, scratch, a team of threads and the pages of the KV cache. `step(rows)` is all that it does.

    rows: (sequence, its new tokens, which of them want logits) -> one step of the kernels through all layers -> logits of those tokens

Texts are sequences (sequence.py); which of them go into a step, a scheduler decides. The kernels do the work (bitnet_kernels.step); this
module allocates what they need, once.
"""

import os
import sys
import weakref
from collections.abc import Sequence as Ids
from typing import Any, NamedTuple

import numpy as np
from bitnet_kernels import arrays, kv_cache
from bitnet_kernels.control import MAX_THREADS, STATE, Text, Wanted
from bitnet_kernels.team import Team
from numpy.typing import NDArray

from bitnet_cli.activations import post_hoc_note, scheme_for
from bitnet_cli.errors import UsageError, option
from bitnet_cli.gguf_file.reader import GGUFFile
from bitnet_cli.gguf_file.types import row_bytes
from bitnet_cli.machine.memory import available_bytes
from bitnet_cli.model import base3_rows, self_test
from bitnet_cli.model.checks import DEFAULT_CONTEXT, check_model, own_bytes, require_memory
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.model.derived import Derived
from bitnet_cli.model.folds import embedding_fold
from bitnet_cli.model.pages import Pages
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import embedding_info, head_info, head_note, load_weights, packed_shapes, rope_tables, sizes_of
from bitnet_cli.tensors.dequantise import rows_as_float32
from bitnet_cli.text.vocabulary import silent_ids

QUERY_TYPES = {"f32": None, "q4": 4}  # bits of arrays.Sizes
CHUNK_TOKENS = 128  # tokens: enough to use each unpacked weight many times, few enough that their activations stay in the L2 cache
PAGE = kv_cache.BLOCK  # positions: attention takes as many at once, and reads them where they lie
WORK_A_CALL = 4e9  # multiply-adds between two chances for Ctrl-C: under 100 ms where two cores do 50e9 a second


class Row(NamedTuple):
    """What a step computes of one text.

    ids     its next tokens, at least one
    wanted  which of them want logits, ascending
    top     how many of the largest logits are needed, as Sequence.feed; 0: all
    states  what is wanted are states after the output norm, (hidden,), in place of logits
    """

    sequence: Sequence
    ids: Ids[int]
    wanted: Ids[int] = ()
    top: int = 0
    states: bool = False


class Engine:
    """A model that is ready to compute. Not for two threads at once.

    context    most tokens of a text
    scheme     what is done to the inputs of projections, a name of activations.SCHEMES
    note       what a user should know of that, or None
    head_note  what a user should know of a head that is re-coded, or None
    batch      most tokens of one step
    threads    how many compute
    silent     ids that are never chosen, ascending: tokens that the file says are unused, and rows of the head past the tokenizer
    pages      who has which part of the KV cache
    derived    layouts that are made of the weights when they pay
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
        cache_tokens: int = 0,
        page: int = 0,
        cache_bytes: int = 0,
    ):
        """context: 0 takes 2048, or the model's if smaller; cache_type: of the KV cache, `f32`, `f16`, `q8`, `q4` or `q3`.

        weight_bits: what decode reads, `2` or `1.6` bits a weight, `auto`: what is quicker here (base3_rows.py).

        activations: `auto`, as the model was trained, or `a8`, `a4`, `fp4` (activations.py; `note` says what that means for the text).

        query_type: of attention's queries, `f32` or `q4`: rounded to 4 bits after RoPE, as the cache type q4 does with keys.

        cache_tokens: that the KV cache holds, of all texts together: a context at least, which is what 0 takes, and no more than half of
        the free memory has room for; cache_bytes: in place of tokens, how much memory it takes, where that is not 0.

        page: positions of a page of the cache, a multiple of 16, and of PAGE or less than that; 0: PAGE, or a context where that is less.

        Raises BitnetError where the cache cannot fit in memory.
        """
        self.config = c = check_model(file)
        self.context = context or min(DEFAULT_CONTEXT, c.context)
        _require_possible(c, self.context, threads, cache_type, query_type)
        self.cache_type, self.threads = cache_type, threads
        self.scheme = scheme_for(c.trained_scheme, activations, c.activation == "relu2", str(file.path))
        self.note = post_hoc_note(c.trained_scheme, self.scheme)
        size = page or min(PAGE, kv_cache.rounded(self.context, 16))
        each = -(-self.context // size)
        count = max(each, self._pages_for(size, cache_tokens, cache_bytes))
        require_memory(c, self.context, cache_type, own_bytes(file, c))
        self.silent = np.array(silent_ids(file.metadata, str(file.path), c.vocab), np.int64)
        cos, sin = rope_tables(file, c, self.context)
        sizes = sizes_of(file, c, self.scheme, QUERY_TYPES[query_type])._replace(page=size)
        weights = load_weights(file, c, cos, sin, self.silent, threads)
        groups = weights.groups or weights.head_groups
        if c.float_activations is not False if len(weights.part_at) else groups and c.float_activations:
            sizes = sizes._replace(digits=2)
        weights, base3 = base3_rows.reserve(weights, c, packed_shapes(c), weight_bits)
        self._embedding, self._embedding_bytes = embedding_info(file), file.raw("token_embd.weight")
        self.head_note = head_note(file)
        self._embedding_fold, self._tokens_a_call = embedding_fold(file, c), WORK_A_CALL / c.ternary_weights
        self.head_bytes = weights.head.size if self.head_note or weights.head_groups else head_info(file).nbytes
        self.batch = CHUNK_TOKENS if count > each else min(CHUNK_TOKENS, self.context)
        self.pages = Pages(size, count)
        spare = threads if size < PAGE and each > 1 else 0
        cache = kv_cache.new_cache(c.layers, c.kv_heads, c.head_dim, size, cache_type, count, spare)
        scratch = arrays.new_scratch(sizes, self.batch, self.context, threads, groups)
        self._open_head(file, weights)
        self.arrays = Arrays(sizes, weights, cache, scratch)
        self.derived = Derived(sizes, weights, base3, scratch, threads, str(file.path))
        self.team = Team(*self.arrays, threads)

    def _open_head(self, file: GGUFFile, weights: arrays.Weights) -> None:
        """Single rows of the head are read from its file, where a search needs few of them."""
        descriptor = file.descriptor(head_info(file)) if len(weights.planes.scales) and os.name != "nt" else None
        if descriptor is not None:
            weights.head_file[0] = descriptor
            weakref.finalize(self, os.close, descriptor)

    def _pages_for(self, size: int, tokens: int, memory: int) -> int:
        """Pages of the KV cache for `tokens`, or in `memory` bytes where that is not 0; half of the free memory at most."""
        c, free = self.config, available_bytes()
        page = kv_cache.cache_bytes(self.cache_type, c.layers, c.kv_heads, c.head_dim, size)
        return min(memory // page if memory else -(-tokens // size), free // 2 // page if free is not None else sys.maxsize)

    def compile(self) -> None:
        """Compile the kernels (seconds, once on a machine) or load them, and start the threads."""
        self.team.start()
        self.derived.compile()

    def start(self) -> None:
        """`compile`, and test what was compiled or loaded. Raises WrongKernelsError."""
        self.compile()
        self_test.check(self.arrays, self.cache_type, self.derived.may_build_base3)

    def close(self) -> None:
        """End the worker threads."""
        self.team.close()

    def cache_bytes(self) -> int:
        """Bytes of the KV cache when full."""
        c = self.config
        return kv_cache.cache_bytes(self.cache_type, c.layers, c.kv_heads, c.head_dim, self.pages.size, self.pages.count)

    def check(self, ids: Ids[int], position: int = 0) -> None:
        """UsageError: tokens that cannot follow `position` others: none, one outside the vocabulary, or more than the context holds."""
        if not len(ids):
            raise UsageError("no tokens to process")
        if position + len(ids) > self.context:
            raise UsageError(
                f"{position + len(ids)} tokens do not fit the context of {self.context}; use a larger {option('context')} or less text"
            )
        if min(ids) < 0 or max(ids) >= self.config.vocab:
            raise UsageError(f"token ids must be 0 to {self.config.vocab - 1}")

    def step(self, rows: Ids[Row]) -> list[NDArray[np.float32]]:
        """Compute the tokens of all rows, which have passed `check`; returns of each row what is wanted, valid until the next step.

        Logits: (len(wanted), vocab) float32, those that the text would get alone, to the bit. States: (len(wanted), hidden) float32.
        Whatever ends a step early, sequences hold what they held before. NoPagesError: there is no room (Sequence.reserve).
        """
        count = sum(len(row.ids) for row in rows)
        if count > self.batch:
            raise ValueError(f"{count} tokens in one step, expected at most {self.batch}")
        for row in rows:
            row.sequence.reserve(len(row.ids))
        if count == 1:
            self.derived.before_decode()
        self.embedding_rows([token for row in rows for token in row.ids], self.arrays.scratch.x)
        texts, wanted, states, first = list[Text](), list[Wanted](), list[Wanted](), 0
        for row in rows:
            texts.append(self.text(len(texts), first, len(row.ids), row.sequence.position, row.sequence))
            if row.states:
                states += [Wanted(first + i, STATE) for i in row.wanted]
            else:
                wanted += self.wanted([first + i for i in row.wanted], row.top, len(wanted))
            first += len(row.ids)
        wanted += states
        c = self.config
        layers = max(1, int(self._tokens_a_call * c.layers / count))
        for begin in range(0, c.layers, layers):
            end = min(begin + layers, c.layers)
            self.team.run(texts, begin, end, wanted if end == c.layers else ())
        for row in rows:
            row.sequence.computed(row.ids)
        return self._found(rows, texts)

    def _found(self, rows: Ids[Row], texts: Ids[Text]) -> list[NDArray[np.float32]]:
        """What each row of a step wanted."""
        found, place = [], 0
        for row, text in zip(rows, texts, strict=True):
            if row.states:
                found.append(self.arrays.scratch.x[[text.row + i for i in row.wanted]])
            else:
                found.append(self.arrays.scratch.logits[place : place + len(row.wanted)])
                place += len(row.wanted)
        return found

    def text(self, number: int, row: int, tokens: int, position: int, sequence: Sequence) -> Text:
        """Number `number` of a step's texts, for kernels: `tokens` of its tokens from `position` on are rows from `row` on."""
        self.arrays.scratch.tables[number] = sequence.table
        return Text(row, tokens, position)

    def all_logits(self, row: int, place: int) -> NDArray[np.float32]:
        """All logits of token `row` of the last step, in place of some that stand in `place` of what was wanted. (vocab,) float32."""
        layers = self.config.layers
        self.team.run([Text(0, row + 1, 0)], layers, layers, [Wanted(row, 0, place)])
        logits: NDArray[np.float32] = self.arrays.scratch.logits[place]
        return logits

    def wanted(self, rows: Ids[int], top: int, place: int = 0) -> list[Wanted]:
        """What kernels are asked for: logits of these tokens of a step, in places from `place` on."""
        top = self.derived.top(top) if len(rows) else 0
        return [Wanted(row, top, place + i) for i, row in enumerate(rows)]

    def embedding_rows(self, ids: Ids[int], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """What the layers begin with: (>= len(ids), hidden) float32, in `out` where given."""
        c, kind = self.config, self._embedding.type
        states = np.empty((len(ids), c.hidden), np.float32) if out is None else out
        size = row_bytes(kind, c.hidden)
        raw = np.concatenate([self._embedding_bytes[token * size : (token + 1) * size] for token in ids])
        rows = rows_as_float32(kind, raw, c.hidden)
        if self._embedding_fold is not None:
            rows = self._embedding_fold.unfold(rows)
        np.multiply(rows, np.float32(c.embedding_scale), out=states[: len(ids)])  # by 1 nothing changes
        return states

    def page_parts(self, page: int, positions: int) -> list[NDArray[Any]]:
        """What a page of the KV cache holds of its first positions, as views: what is written there is what sequences read."""
        size = self.pages.size
        parts = []
        for name, array in self.arrays.cache._asdict().items():
            unit, count = (16, -(-positions // 16)) if name == "keys" else (1, positions)  # keys lie in blocks of 16 positions
            first = page * (size // unit)
            parts.append(array[:, :, page : page + 1] if name.startswith("first_") else array[:, :, first : first + count])
        return parts

    def copy_page(self, source: int, target: int) -> None:
        """What one page of the KV cache holds, the other holds too."""
        for new, old in zip(self.page_parts(target, self.pages.size), self.page_parts(source, self.pages.size), strict=True):
            new[:] = old


def _require_possible(c: ModelConfig, context: int, threads: int, cache_type: str, query_type: str) -> None:
    if not 1 <= context <= c.context:
        raise UsageError(f"context {context}: this model was trained for 1 to {c.context} tokens")
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads: expected 1 to {MAX_THREADS}")
    if cache_type not in kv_cache.CACHE_TYPES:
        *most, last = kv_cache.CACHE_TYPES
        raise UsageError(f"cache type {cache_type}: expected {', '.join(most)} or {last}")
    if query_type not in QUERY_TYPES:
        raise UsageError(f"query type {query_type}: expected {' or '.join(QUERY_TYPES)}")


class Arrays(NamedTuple):
    """What kernels work on."""

    sizes: arrays.Sizes
    weights: arrays.Weights
    cache: kv_cache.AnyCache
    scratch: arrays.Scratch
