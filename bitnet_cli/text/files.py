"""Text of files and pipes -> str, the same way everywhere: prompts, texts to score or embed, lines of a chat, templates.

UTF-8, or UTF-16 and UTF-32 with a byte order mark, which is no part of the text; another encoding where it is named. Bytes that are not
text in it are refused with their place, since U+FFFD in a prompt would be a silent fault. Line ends become \\n.
"""

import codecs
from collections.abc import Callable, Iterator

from bitnet_cli.errors import BadFileError, UsageError

# The longer ones first: the mark of UTF-32 begins with that of UTF-16, in little-endian order.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UTF8, MARK = "utf-8", "\ufeff"
LOOKED_AT = 256  # bytes in which UTF-16 without a mark shows itself
HINT = "; --encoding NAME reads others, such as latin-1, cp1252 or utf-16-le"


def require_encoding(name: str | None) -> None:
    """UsageError: not the name of an encoding of text that Python knows."""
    try:
        if name is not None:
            b"".decode(name)
            "".encode(name)
    except (LookupError, ValueError):
        raise UsageError(
            f"--encoding {name!r:.40}: no encoding of text is known by this name, expected one such as utf-16 or cp1252"
        ) from None


def decode_text(data: bytes, source: str, field: str = "text", encoding: str | None = None, *, hint: bool = True) -> str:
    """The text of `data`. source, field: for messages; encoding: a name that Python knows, None: as the module says.

    hint: name the option by which another encoding can be given. UsageError: no such encoding. BadFileError: bytes that are not text in it.
    """
    require_encoding(encoding)
    chosen = encoding or _encoding_of(data, source, field, hint)
    try:
        text = data.decode(chosen)
    except UnicodeDecodeError as error:
        raise _not_text(source, field, chosen, error, 0, hint) from None
    except UnicodeError as error:  # UTF-16 of an odd number of bytes, in some versions
        raise BadFileError(source, field, f"is not {chosen}: {error}") from None
    return text.removeprefix(MARK).replace("\r\n", "\n")


def decoded_lines(readline: Callable[[], bytes], source: str, encoding: str | None = None) -> Iterator[str]:
    """Lines without their ends, each as soon as it has come. readline: of a binary file; the rest as `decode_text`."""
    require_encoding(encoding)
    data = readline()
    chosen = encoding or _encoding_of(data, source, "text", True)
    decoder, done, pending, first = codecs.getincrementaldecoder(chosen)("strict"), 0, "", True
    while True:
        waiting = len(decoder.getstate()[0])
        try:
            pending += decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_text(source, "text", chosen, error, done - waiting, True) from None
        done += len(data)
        if first and pending:
            pending, first = pending.removeprefix(MARK), False
        *lines, pending = pending.split("\n")
        yield from (line.removesuffix("\r") for line in lines)
        if not data:
            break
        data = readline()
    if pending:
        yield pending


def _encoding_of(data: bytes, source: str, field: str, hint: bool) -> str:
    """By the mark. BadFileError: what can only be UTF-16 without one."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    start = data[: min(len(data), LOOKED_AT) // 2 * 2]
    for at, order in ((1, "le"), (0, "be")):
        zeros, others = start[at::2], start[1 - at :: 2]
        if len(zeros) > 1 and not any(zeros) and all(others):
            reason = f"looks like UTF-16 without a byte order mark, expected UTF-8{f'; --encoding utf-16-{order} reads it' if hint else ''}"
            raise BadFileError(source, field, reason, 0)
    return UTF8


def _not_text(source: str, field: str, encoding: str, error: UnicodeDecodeError, before: int, hint: bool) -> BadFileError:
    """error: in bytes of which so many came before."""
    shown = "".join(f"{byte:02x}" for byte in error.object[error.start : max(error.end, error.start + 1)][:4])
    reason = f"is not {encoding.upper()}: {error.reason}, bytes {shown}{HINT if hint else ''}"
    return BadFileError(source, field, reason, before + error.start)
