"""Strings that end a text, looked for while it grows.

In: pieces of text. Out: pieces that may be shown; what could be the beginning of a stop string is held back until that is known.
"""

from collections.abc import Sequence


class StopStrings:
    """found: the stop string that was met, None before. An empty string stops nothing."""

    def __init__(self, strings: Sequence[str]):
        self._strings = [string for string in strings if string]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """What may be shown now. Nothing from a stop string on, and nothing after it was found."""
        if self.found is not None:
            return ""
        text, self._held = self._held + text, ""
        met = [(at, string) for string in self._strings if (at := text.find(string)) >= 0]
        if met:
            at, self.found = min(met, key=lambda one: (one[0], -len(one[1])))
            return text[:at]
        longest = max((self._overlap(text, string) for string in self._strings), default=0)
        cut = len(text) - longest
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back when the text ended without a stop string."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """How many characters at the end of `text` are the beginning of `string`."""
        longest = min(len(text), len(string) - 1)
        return next((count for count in range(longest, 0, -1) if text.endswith(string[:count])), 0)
