"""Values that a shell's Tab key offers. Only what is quick is imported: a Tab should take no longer than the eye notices.

A function gets the beginning of a word and returns what the word may be. Where it returns nothing, the shell completes file names, which
it does better than any list: with `~`, with quotes around spaces, without a space after a folder.
"""

import re
from collections.abc import Callable
from pathlib import Path

_PLAIN = re.compile(r"[\w./+@-]+")  # names that no shell wants quoted


def model(beginning: str) -> list[str]:
    """Names of models on this computer, and beside them the GGUF files and folders that begin alike."""
    from bitnet_cli.checkpoint.hub_id import SUFFIX
    from bitnet_cli.model.names import available

    names = [name for name in dict.fromkeys(listed.name for listed in available()) if name.startswith(beginning)]
    if not names:
        return []
    here = sorted(path for path in Path().iterdir() if path.name.startswith(beginning) and _PLAIN.fullmatch(path.name))
    files = [path.name for path in here if path.suffix.lower() == SUFFIX and path.is_file()]
    folders = [f"{path.name}/" for path in here if path.is_dir() and not path.name.startswith(".")]
    return [name for name in names if _PLAIN.fullmatch(name)] + files + folders


def template(beginning: str) -> list[str]:
    """Chat formats; a template in a file is for the shell to find."""
    from bitnet_cli.text.chat.choice import OWN
    from bitnet_cli.text.chat.templates import BUILT_IN

    return [name for name in [*BUILT_IN, OWN] if name.startswith(beginning)]


def several(*values: str) -> Callable[[str], list[str]]:
    """A list with commas, of some of these values."""

    def complete(beginning: str) -> list[str]:
        before, comma, last = beginning.rpartition(",")
        used = before.split(",")
        return [f"{before}{comma}{value}" for value in values if value.startswith(last) and value not in used]

    return complete
