"""Layouts that are derived from a file's weights at load: planes of the head, columns of `down`, base-3 rows for decode.

Each has a module that knows when it pays and how it is made: head.py, columns.py, base3_rows.py. They are alike in this:

    room      memory is reserved with the weights and not touched (load_weights, base3_rows.reserve)
    compile   what builds them is compiled before the first text
    build     when enough work is expected to earn it back, once or layer by layer; from then on kernels read them
"""

from bitnet_kernels import arrays

from bitnet_cli.model import base3_rows, columns, head
from bitnet_cli.model.traffic import skipped_share

LAYERS = 1  # whose base-3 rows are built between two tokens: all at once, a text that is being written would stand still for 0.5 s at 2B-4T
PAYS_OFF = 150  # decoded tokens in which decode's layouts (base3_rows.py, columns.py) gain what building them takes (docs/log.md#layouts)


class Derived:
    """What is built of them, and when the next is. `path` names the model in errors."""

    def __init__(
        self, sizes: arrays.Sizes, weights: arrays.Weights, base3: base3_rows.Base3Plan, scratch: arrays.Scratch, threads: int, path: str
    ):
        self._sizes, self._weights, self._base3, self._scratch, self._threads, self._path = sizes, weights, base3, scratch, threads, path
        self._head_built = False
        self._columns_decided = bool(sizes.hadamard)  # after the transform no input of `down` is zero
        self._decoded = 0
        self._until: int | None = None

    def compile(self) -> None:
        """Compile what builds them, so that it does not happen in the middle of a text."""
        if len(self._weights.planes.scales):
            head.compile_builder()
        if len(self._weights.columns):
            columns.compile_builder(self._weights)
        base3_rows.compile_builder(self._weights, self._base3)

    @property
    def may_build_base3(self) -> bool:
        """Whether decode may come to read base-3 rows."""
        return bool(self._base3.shapes)

    def expect(self, tokens: int | None) -> None:
        """At most so many tokens will be decoded next; None: nobody knows. For a short text no layouts are built: it would end later."""
        self._until = None if tokens is None else self._decoded + tokens

    def before_decode(self) -> None:
        """A step of one token comes: build what pays for it and those that follow."""
        self._decoded += 1
        pays = self._until is None or max(self._decoded, self._until - self._decoded) >= PAYS_OFF
        if (pays or self._base3.required) and self._base3.shapes and self._decoded > self._base3.after:
            self._build_base3(None if self._base3.required else LAYERS)
        if pays and not self._columns_decided:
            self._perhaps_build_columns()

    def _build_base3(self, layers: int | None) -> None:
        plan, self._base3 = self._base3, self._base3._replace(shapes=())  # nothing more, should this fail
        if base3_rows.build(self._weights, plan, self._threads, self._path, layers):
            self._base3 = plan

    def finish(self) -> None:
        """Build the rest of what has been begun, for those who measure."""
        if self._base3.shapes and self._weights.base3_built[0]:
            self._build_base3(None)

    def _perhaps_build_columns(self) -> None:
        """Once, after a few decoded tokens: store `down` by columns where enough of the tokens' hidden units were zero."""
        z = self._sizes
        if self._scratch.counts[:, 0].sum() < columns.DECIDE_AFTER * z.layers * z.feed_forward:
            return
        self._columns_decided = True
        enough = columns.SPARSE_BESIDE_BASE3 if self._weights.base3_built[0] else columns.SPARSE
        if len(self._weights.columns) and skipped_share(self._scratch) >= enough:
            columns.build_columns(z, self._weights, self._threads)

    def top(self, top: int) -> int:
        """What a step is asked for, for `top` logits: the same where the head has planes, built when first needed; 0, all, elsewhere."""
        if not 0 < top <= arrays.MAX_TOP or not len(self._weights.planes.scales):
            return 0
        if not self._head_built:
            head.build_planes(self._sizes, self._weights, self._threads)
            self._head_built = True
        return min(top, len(self._weights.planes.ids))
