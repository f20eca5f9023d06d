"""How the threads of a team wait for each other: a barrier inside a step, and the wait for the next step."""

from .control import ARRIVED, ASLEEP, CREW, GENERATION, SPINS_BEFORE_SLEEP, SPINS_BEFORE_YIELD, STEP
from .jit import entry, kernel
from .simd.atomics import atomic_add, atomic_load, atomic_store, pause, yield_thread


@kernel
def barrier(control, threads):
    """Returns once all `threads` threads have called it."""
    if threads > 1:
        generation = atomic_load(control, GENERATION)
        if atomic_add(control, ARRIVED, 1) == threads - 1:
            atomic_store(control, ARRIVED, 0)
            atomic_store(control, GENERATION, generation + 1)
        else:
            spins = 0
            while atomic_load(control, GENERATION) == generation:
                spins += 1
                pause()
                if spins > SPINS_BEFORE_YIELD:
                    yield_thread()


@entry
def announce(frame, step, threads):
    """Make `step` the word to follow; returns whether any of the first `threads` sleeps and must be woken. frame: a Shared."""
    control = frame.control
    atomic_add(control, STEP, step - atomic_load(control, STEP))
    asleep = 0
    for thread in range(threads):
        asleep |= control[ASLEEP + thread]
    return asleep


@kernel
def next_step(control, thread, done):
    """Wait for a step after `done`: its word, or `done` itself where none came soon and the thread should sleep.

    A thread that took no part in `done` sleeps at once.
    """
    for spin in range(SPINS_BEFORE_SLEEP if thread < done % CREW else 0):
        step = atomic_load(control, STEP)
        if step != done:
            return step
        pause()
        if spin > SPINS_BEFORE_YIELD:
            yield_thread()
    # Say so first, then look once more: either this thread sees the step, or the announcer sees that it sleeps.
    atomic_add(control, ASLEEP + thread, 1)
    step = atomic_load(control, STEP)
    if step != done:
        atomic_add(control, ASLEEP + thread, -1)
    return step
