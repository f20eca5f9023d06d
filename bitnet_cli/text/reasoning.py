"""What a model writes as its answer, apart from what it thinks before.

Models that reason write `<think>...</think>` first, and some templates have begun that for them. In: pieces of text as the model gives
them. Out: pieces of the answer, without the spaces around it. A tag in the middle of an answer is part of it.
"""

OPEN, CLOSE = "<think>", "</think>"


class AnswerText:
    """begun: the prompt ends inside a thought. keep: thoughts are part of the answer, tags and all.

    thinking  whether a thought has begun and not ended
    hidden    whether there was a thought that was not given out
    """

    def __init__(self, *, begun: bool = False, keep: bool = False):
        self.thinking = self.hidden = begun and not keep
        self._start = not keep and not begun
        self._held, self._written = "", False

    def push(self, text: str, *, last: bool = False) -> str:
        """What may be shown now."""
        held, self._held = self._held + text, ""
        if self._start:
            word = held.lstrip()
            if not last and OPEN.startswith(word[: len(OPEN)]) and len(word) < len(OPEN):
                self._held = held
                return ""
            self._start = False
            self.thinking = self.hidden = word.startswith(OPEN)
        if self.thinking:
            _, closed, after = held.partition(CLOSE)
            if not closed:
                self._held = held[-(len(CLOSE) - 1) :]
                return ""
            self.thinking, held = False, after
        held = held if self._written else held.lstrip()
        shown = held.rstrip()
        self._held = held[len(shown) :]  # spaces at the end belong to the answer only if something follows them
        self._written = self._written or bool(shown)
        return shown


def begun_in(prompt: str) -> bool:
    """Whether a prompt, or its end, has begun a thought for the model."""
    return prompt.rstrip().endswith(OPEN)
