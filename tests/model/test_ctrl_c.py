"""Ctrl-C where Python looks for it in the scheduler, the sequences and their pages, where a scene meets it: others never notice."""

import dis
import signal
import sys
import threading
from collections import Counter
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.model import generate, pages, scheduler, sequence
from bitnet_cli.model.generate import Text, TextPlan
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Sequence

from .fake_engine import FakeEngine

OWN = 7  # tokens of our own text
FILES = {module.__file__ for module in (generate, pages, scheduler, sequence)}
Place = tuple[CodeType, int]
_names: dict[CodeType, dict[int, str]] = {}

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler,
    reason="Ctrl-C is somebody else's here",
)


LOOKS = ("CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "JUMP_ABSOLUTE")


def looks_after(code: CodeType, offset: int) -> bool:
    """Whether Python looks for signals after the instruction at `offset`: a call, or a jump back. It does so where functions begin, too."""
    if code not in _names:
        _names[code] = {one.offset: one.opname for one in dis.get_instructions(code)}
    return _names[code].get(offset, "").startswith(LOOKS)


class Places:
    """Within `with`: counts the places that are met, and presses Ctrl-C where one of them is met for the `number`-th time."""

    def __init__(self, where: Place | None = None, number: int = 0):
        self.met: Counter[Place] = Counter()
        self._where, self._number, self._before = where, number, dict[FrameType, int]()

    def __enter__(self) -> "Places":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if code.co_filename not in FILES or code.co_name == "<genexpr>":  # an interrupt while one is closed is printed and lost
            return None
        if self._where and self._where[0] is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "call" or (event == "opcode" and looks_after(code, self._before.get(frame, -1))):
            place = (code, frame.f_lasti)
            self.met[place] += 1
            if place == self._where and self.met[place] == self._number:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        if event == "opcode":
            self._before[frame] = frame.f_lasti
        elif event == "return":
            self._before.pop(frame, None)
        return self._trace


def logits(ids: Any) -> Any:
    """Of a vocabulary of 40, a function of the last three tokens and their number."""
    return np.random.default_rng([len(ids), *ids[-3:]]).standard_normal(40).astype(np.float32)


def written(seed: int, tokens: int) -> Text:
    begin = [3, 1, 4, 1, 5, 9] if seed % 2 else [2, 7]
    return Text([*begin, 30 + seed], Sampler(Sampling(1.0, seed=seed, repeat_penalty=1.3)), TextPlan(tokens, draft=3 if seed == 2 else 0))


class Scene:
    """In a cache of eight pages with four positions: three texts of others, and one of our own, which also computes theirs.

    cut_off: a step in which Ctrl-C comes anyway, when it has computed a part of its texts; 0: none.
    """

    def __init__(self, cut_off: int = 0) -> None:
        engine = FakeEngine(logits, context=24, vocab=40, tick=self._tick)
        engine.pages = pages.Pages(4, 8)
        self.scheduler = Scheduler(engine)  # type: ignore[arg-type]
        self._left = cut_off
        self.others = [written(seed, 9) for seed in (1, 2, 3)]
        for job in self.others:
            self.scheduler.submit(job)

    def _tick(self, _: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    def play(self) -> bool:
        """Whether our own text came to its end."""
        try:
            return len(list(self.scheduler.run(written(5, OWN)))) == OWN
        except KeyboardInterrupt:
            return False

    def end(self) -> None:
        self._left = 0
        while self.scheduler.step():
            pass


@pytest.fixture(autouse=True)
def _few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "AHEAD", OWN - 2)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return [list(Scheduler(FakeEngine(logits, context=24, vocab=40)).run(written(seed, 9))) for seed in (1, 2, 3)]  # type: ignore[arg-type]


TIDIES = [Scheduler._rewind, Sequence.rewind, pages.Pages.leave, pages.Pages.cut, Scheduler.cancel, Scheduler._dismiss]


def places(cut_off: int) -> list[tuple[Place, int]]:
    """All, where they are met for the first time and in the middle; with a step that is cut off those of what tidies up, at the end too."""
    scene, found = Scene(cut_off), Places()
    with found:
        assert scene.play() == (cut_off == 0)
    scene.end()
    assert cut_off or scene.scheduler.given_back > 0
    chosen: list[tuple[Place, int]] = []
    for place, count in found.met.items():
        if cut_off == 0:
            chosen += [(place, number) for number in sorted({1, (count + 1) // 2})]
        elif place[0] in {one.__code__ for one in TIDIES}:
            chosen += [(place, number) for number in sorted({1, (count + 1) // 2, max(1, count - 1), count})]
    return chosen


@pytest.mark.parametrize("cut_off", [0, 2, 6, 10, 13])
def test_everywhere(expected: list[list[int]], cut_off: int) -> None:
    met, ended = places(cut_off), 0
    for place, number in met:
        scene = Scene(cut_off)
        with Places(place, number):
            ended += scene.play()
        scene.end()
        where = f"{place[0].co_name} at {place[1]}, time {number}"
        assert [list(job.ready) for job in scene.others] == expected, where
        assert [job.error for job in scene.others] == [None] * 3, where
        known = scene.scheduler.engine.pages
        assert not scene.scheduler._jobs and known.used == 0, where
        known.forget()
        assert known.unused == known.count and not scene.scheduler._turn.locked(), where
    assert len(met) > 20 and ended < len(met)


def test_while_a_text_of_another_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is not lost in its error."""
    scene = Scene()
    scene.end()
    wrong, check = Text([99], Sampler(Sampling(1.0)), TextPlan(2)), scene.scheduler.engine.check

    def interrupted(ids: Any, position: int = 0) -> None:
        if 99 in ids:
            signal.raise_signal(signal.SIGINT)
        check(ids, position)

    monkeypatch.setattr(scene.scheduler.engine, "check", interrupted)
    scene.scheduler.submit(wrong)
    assert not scene.play()
    assert "token ids must be 0 to 39" in str(wrong.error)


def test_a_text_that_cannot_begin_keeps_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it computed: in the step in which it fails it gives back what it found of its beginning."""
    scene = Scene()
    scene.end()
    known = list(range(20))
    assert len(list(scene.scheduler.run(Text(known, Sampler(Sampling(1.0)), TextPlan(1))))) == 1
    wrong = Text([*known, 1], Sampler(Sampling(1.0)), TextPlan(1))
    monkeypatch.setattr(wrong._sampler, "observe", lambda ids: (_ for _ in ()).throw(MemoryError))
    scene.scheduler.submit(wrong)
    assert not scene.scheduler.step()
    assert isinstance(wrong.error, MemoryError) and scene.scheduler.engine.pages.used == 0
