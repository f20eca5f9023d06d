"""A `bitnet_cli.Model` as lm-evaluation-harness asks models: likelihoods of continuations, of whole texts, and texts until a stop string.

Tokens are split as the harness does it for models of Hugging Face (lm_eval.api.model.TemplateLM): a context and its continuation are
encoded together, and the context's tokens are taken off, so that numbers are those of `--model hf` and of `local-completions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from bitnet_cli.api import Model
from bitnet_cli.model.scoring import score_texts
from bitnet_cli.text.chat.choice import choose
from bitnet_cli.text.chat.templates import checked_messages, encode_chat

TASKS = Path(__file__).parent / "tasks"
MOST_NEW = 256  # tokens of an answer, where a task does not say
AT_ONCE = 32  # texts that are given to the model together

Progress = Callable[[int, int], None]


class BitnetLM(TemplateLM):  # type: ignore[misc]
    """progress(done, all) is called while a kind of requests is answered.

    add_bos_token: whether texts begin with the begin token, as the harness's own models call it; None: where the model wants one. The
    harness's client of a server never sends one (RemoteTokenizer in lm_eval/utils.py, 0.4.13).
    """

    def __init__(self, model: Model, progress: Progress | None = None, add_bos_token: bool | None = None):
        super().__init__()
        self.model, self._progress, self._begin = model, progress or (lambda _done, _all: None), add_bos_token

    @property
    def eot_token_id(self) -> int:
        ids = [self.model.tokenizer.eos_id, *sorted(self.model.tokenizer.eos_ids), self.model.tokenizer.bos_id, 0]
        return next(token for token in ids if token is not None)

    @property
    def prefix_token_id(self) -> int:
        bos = self.model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.model.context

    @property
    def tokenizer_name(self) -> str:
        return self.model.path.stem

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, with the begin token as `add_bos_token` says."""
        return self.model.tokenizer.encode(string, bos=self._begin if add_special_tokens is None else add_special_tokens, special=True)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text, which `tok_encode` reads with the names of control tokens as these tokens."""
        choice = choose(self.model._open().chat)
        ids = encode_chat(self.model.tokenizer, choice.template, checked_messages(chat_history), ask=add_generation_prompt)
        if ids and ids[0] == self.model.tokenizer.bos_id:
            del ids[0]
        return self.model.tokenizer.decode(ids, skip_special=False)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(sum of the continuation's log-probabilities, whether greedy decoding would write it) of each request."""
        # Neighbours that begin alike share what is computed; the longest come first, so that what does not fit is met at once.
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i][1]), requests[i][1], requests[i][2]))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), AT_ONCE):
            part = order[start : start + AT_ONCE]
            texts = []
            for number in part:
                _, context, text = requests[number]
                kept = (context + text)[
                    -(self.max_length + 1) :
                ]  # as the harness does: the beginning goes; the last token is only a target
                texts.append((kept[: len(kept) - len(text)], text[-self.max_length :]))
            for number, scored in zip(part, score_texts(self.model._open().scheduler, texts), strict=True):
                found[number] = (float(scored.logprobs.sum()), scored.greedy)
            self._progress(len(found), len(requests))
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts: each token once, in windows of the context (lm_eval.utils.get_rolling_token_windows)."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        sums = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
            parts = [(context, text) for context, text in map(make_disjoint_window, windows)]
            sums.append(math.fsum(float(scored.logprobs.sum()) for scored in score_texts(self.model._open().scheduler, parts)))
            self._progress(number + 1, len(requests))
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that end before one of the task's stop strings; greedy unless a task says otherwise."""
        texts = []
        for number, request in enumerate(requests):
            context, options = request.args
            wanted = dict(options)
            stops = wanted.get("until") or []
            most = int(wanted.get("max_gen_toks") or wanted.get("max_new_tokens") or MOST_NEW)
            ids = self.tok_encode(context)[-max(self.max_length - most, 1) :]
            temperature = float(wanted.get("temperature", 0.0)) if wanted.get("do_sample", True) else 0.0
            text = self.model.generate(
                ids, max_tokens=most, temperature=temperature, stop=[stops] if isinstance(stops, str) else stops, seed=0
            )
            texts.append("".join(text))
            self._progress(number + 1, len(requests))
        return texts
