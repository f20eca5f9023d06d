"""How many threads take part: as many as get cores, and one more now and then, whoever comes and goes beside them."""

import pytest
from bitnet_kernels import crew as module
from bitnet_kernels.crew import Crew


class Clock:
    """Seconds, and those of the CPU that this process used."""

    now = cpu = 0.0


clock = Clock()


@pytest.fixture(autouse=True)
def of_that_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "process_time", lambda: clock.cpu)


def run(crew: Crew, cores: float, seconds: float, tokens: int = 1, gap: float = 0.0) -> list[int]:
    """Steps of so long in all, on a machine that gives so many cores: threads above that halve the speed. Active threads after each."""
    seen, end = list[int](), clock.now + seconds
    while clock.now < end:
        got = min(crew.active, cores)
        wall = 0.02 / (got if crew.active <= cores else cores / 2)
        start = clock.now
        clock.now += wall
        clock.cpu += wall * got
        crew.took(tokens, 1.0, start, clock.now)
        seen.append(crew.active)
        clock.now += gap
    return seen


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_a_quiet_machine_changes_nothing(threads: int) -> None:
    assert set(run(Crew(threads), 8, 20)) == {threads}


@pytest.mark.parametrize(("threads", "cores"), [(2, 1), (4, 2), (8, 2), (8, 3)])
def test_more_threads_than_cores(threads: int, cores: int) -> None:
    """They are left out within three windows, and trials of one more become rare."""
    crew = Crew(threads)
    assert run(crew, cores, 0.5)[-1] == cores
    seen = run(crew, cores, 60)
    assert sum(active > cores for active in seen) < 0.05 * len(seen)
    assert max(seen) == cores + 1


def test_pauses_between_steps_are_no_lack_of_cores() -> None:
    assert set(run(Crew(2), 2, 20, gap=0.05)) == {2}
    assert set(run(Crew(2), 2, 20, gap=0.001)) == {2}


def test_cores_that_come_back_are_used() -> None:
    crew = Crew(4)
    run(crew, 1, 30)
    assert crew.active == 1
    run(crew, 4, 40)
    assert crew.active == 4


def test_a_trial_ends_where_other_work_begins() -> None:
    crew = Crew(2)
    run(crew, 1, 1)
    while crew.active == 1:
        run(crew, 1, 0.02)
    run(crew, 1, 0.01, tokens=128)
    assert crew.active == 1
