"""Script: one scenario of threads that run decoder steps together -> true as JSON. A scenario that hangs is ended by the test's time limit.

team_scenarios.py NAME
team_scenarios.py stress 1000000    so many steps; 500 without a number
"""

import json
import signal
import sys
import threading
import time

import numpy as np
from bitnet_kernels.control import Text, Wanted
from tiny_model import SHAPES, Model, Shape

TINY = Shape(hidden=128, heads=2, kv_heads=1, feed_forward=128, vocab=16, layers=2, chunk=6)


def all_steps(model: Model, pieces: int = 1) -> list[np.ndarray]:
    """Residual streams and logits of every step of the plan, and the KV cache at the end."""
    results = [part for position, tokens in model.plan() for part in model.run(position, tokens, pieces)]
    return [*results, model.cache.keys.copy(), model.cache.values.copy()]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def same_bits() -> bool:
    """Any number of threads gives the same bits, also with fewer heads or vocabulary rows than threads."""
    for shape in SHAPES.values():
        alone = all_steps(Model(shape))
        for threads in (2, 3, 5):
            model = Model(shape, threads)
            together = all_steps(model)
            model.team.close()
            if not same(alone, together):
                return False
    return True


def own_tokens() -> bool:
    """So many tokens that threads, or crews of them, have their own: the same bits as one thread, in one call and in one a layer."""
    for kind, given in SHAPES.items():
        shape = given._replace(context=360, chunk=200, layers=2)
        results = []
        for threads in (1, 2, 3, 4, 6):
            model = Model(shape, threads, cache="q8" if kind == "silu" else "f32")
            whole = [part for position, tokens, pieces in ((0, 150, 1), (150, 200, 2)) for part in model.run(position, tokens, pieces)]
            results.append([*whole, model.cache.keys.copy(), model.cache.values.copy()])
            model.team.close()
        if not all(same(results[0], result) for result in results[1:]):
            return False
    return True


def split_layers() -> bool:
    """Layers split over calls: nothing of one call is taken for the next one's, however late a thread wakes up."""
    expected = all_steps(Model(TINY))
    model = Model(TINY, threads=4)
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        if not same(all_steps(model, pieces=2), expected):
            return False
    model.team.close()
    return True


def after_pauses() -> bool:
    """Steps right after each other, and after pauses around and beyond the time for which threads spin."""
    expected = Model(TINY).run(0, 4)
    model = Model(TINY, threads=3)
    rng = np.random.default_rng(1)
    for number in range(150):
        if not same(list(model.run(0, 4)), list(expected)):
            return False
        time.sleep([0, 0, rng.uniform(0, 0.004), 0.03][number % 4])
    model.team.close()
    return True


def reuse() -> bool:
    """Closed, used again, closed twice, closed unused; closing ends every thread, also a sleeping one."""
    model = Model(TINY, threads=3)
    model.team.close()
    expected = Model(TINY).run(0, 4)
    for number in range(10):
        right = same(list(model.run(0, 4)), list(expected)) and same(list(model.run(0, 4)), list(expected))
        time.sleep(0.05 * (number % 2))
        model.team.close()
        model.team.close()
        if not right or any(thread.name.startswith("bitnet-") for thread in threading.enumerate()):
            return False
    return True


def two_callers() -> bool:
    """Two Python threads that run steps of one team at once: each step is whole, and both end."""
    model, expected = Model(TINY, threads=2), Model(TINY).run(0, 4)[1]
    wrong = []

    def call() -> None:
        for _ in range(300):
            # No layers, so that the residual stream stays as it is: both callers want the same logits.
            model.team.run([Text(0, 4, 0)], 0, 0, [Wanted(3)])

    model.run(0, 4)
    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    if not np.array_equal(model.scratch.logits[0], expected):
        wrong.append("logits")
    model.team.close()
    return not wrong


def many_teams() -> bool:
    """Eight teams at once, each with its own caller, as the requests of a server would be."""
    expected = all_steps(Model(TINY))
    right: list[bool] = []

    def call() -> None:
        model = Model(TINY, threads=2)
        right.extend(same(all_steps(model), expected) for _ in range(3))
        model.team.close()

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return right == [True] * 24


def more_threads_than_cores() -> bool:
    """A spinning thread gives its core to the one that it waits for."""
    expected = all_steps(Model(TINY))
    model = Model(TINY, threads=24)
    right = same(all_steps(model), expected)
    model.team.close()
    return right


def stress(steps: int = 500) -> bool:
    """Steps by 1 to 16 threads, two plans of each number of them in turns, with pauses and without: the bits of one thread."""
    alone, rng = Model(TINY), np.random.default_rng(1)
    expected = [list(alone.run(*step)) for step in alone.plan()]
    teams = [Model(TINY, threads) for threads in range(1, 17)]
    for number in range(steps):
        model, turn = teams[number // (2 * len(expected)) % len(teams)], number % len(expected)
        if not same(list(model.run(*model.plan()[turn])), expected[turn]):
            return False
        if rng.random() < 0.01:
            time.sleep(rng.choice([1e-5, 1e-3, 1e-2]) * rng.random())
    for model in teams:
        model.team.close()
    return True


def empty_steps() -> bool:
    """A step without layers and logits has no barrier: the next step's parameters may not be taken for it."""
    expected = Model(TINY).run(0, 4)
    model = Model(TINY, threads=4)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        model.team.run([Text(0, 4, 0)], 0, 0)
        if not same(list(model.run(0, 4)), list(expected)):
            return False
    model.team.close()
    return True


def interrupted() -> bool:
    """Ctrl-C at any moment: the step that it met is finished, and the next ones are right."""
    expected = Model(TINY).run(0, 4)
    model = Model(TINY, threads=3)
    model.run(0, 4)
    announce, caught = model.team._announce, 0

    def before(step: int, threads: int) -> None:
        raise KeyboardInterrupt

    def after(step: int, threads: int) -> None:
        announce(step, threads)
        raise KeyboardInterrupt

    def on_time(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, on_time)
    for number in range(200):
        model.team._announce = (before, after, announce, announce)[number % 4]
        try:
            if number % 4 > 1 and hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + number * 2e-6)
            model.run(0, 4)
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            caught += 1
        model.team._announce = announce
        if not same(list(model.run(0, 4)), list(expected)):
            return False
    model.team.close()
    return caught >= 100


def never_closed() -> bool:
    """A process ends although its team was not closed."""
    Model(TINY, threads=3).run(0, 4)
    return True


SCENARIOS = {
    function.__name__: function
    for function in (
        same_bits,
        own_tokens,
        split_layers,
        after_pauses,
        reuse,
        two_callers,
        many_teams,
        more_threads_than_cores,
        stress,
        empty_steps,
        interrupted,
        never_closed,
    )
}

if __name__ == "__main__":
    json.dump(SCENARIOS[sys.argv[1]](*map(int, sys.argv[2:])), sys.stdout)
