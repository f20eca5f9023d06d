"""Token ids one by one -> text for a reader who watches it grow.

In: ids as the model gives them. Out: pieces of text whose concatenation is what `Tokenizer.decode` makes of all the ids.
"""

from __future__ import annotations

import codecs

from bitnet_cli.text.tokenizer import Tokenizer

# C0, DEL and C1 without newline and tab. ESC (0x1B) and CSI (0x9B) begin the sequences that move the cursor, set the window title or
# write the clipboard. Without its first character a sequence is plain text, so no state is kept, and one that is cut anywhere
# between two pieces of text does no harm either. Embeddings, overrides and isolates of the bidirectional algorithm show what follows, also
# what is not the model's, in another order than it has; the marks that right-to-left text is written with stay.
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = dict.fromkeys([*(c for c in range(0x20) if c not in (0x09, 0x0A)), *range(0x7F, 0xA0), *_DIRECTIONS])


class IncrementalDecoder:
    """Holds back the bytes of an unfinished character; bytes that cannot become one are U+FFFD, at once or in `finish`.

    skip_special, at_start   as in `Tokenizer.decode`
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, at_start: bool = True):
        self._tokenizer, self._skip_special, self._at_start = tokenizer, skip_special, at_start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        data, self._at_start = self._tokenizer.output_bytes(token_id, skip_special=self._skip_special, at_start=self._at_start)
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What was held back: empty, or one U+FFFD. Call it once, after the last token."""
        return self._utf8.decode(b"", final=True)


def terminal_safe(text: str) -> str:
    """`text` without the control characters that could drive a terminal; newline and tab stay. Works on pieces of a stream."""
    return text.translate(_CONTROLS)
