"""What people do in a notebook: seven sessions in a real kernel, with the threads that are left and the memory that is taken.

Cells print one JSON object. `counts()` in a cell: threads of the operating system, and MiB of memory; the kernel's own do not change.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient", reason="the extra `clients` is not installed")
pytest.importorskip("ipykernel", reason="the extra `clients` is not installed")

import nbformat  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="threads and memory are counted in /proc"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what runs notebooks, not of what they run
]

BEGIN = """
import gc, json, os, random, signal, threading, time
from bitnet_cli import load
from bitnet_cli.errors import BitnetError

PROMPT = "And the king said"

def counts():
    gc.collect()
    time.sleep(0.2)  # threads that were told to end do so
    resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return len(os.listdir("/proc/self/task")), int(resident.split()[1]) / 1024

def told(**facts):
    print(json.dumps(facts))

def text(model, seed=1, tokens=24):
    return model.generate(PROMPT, max_tokens=tokens, seed=seed).text

def interrupted_after(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()

before = counts()
model = load(threads=2)
expected = text(model)
loaded = counts()
"""
MORE = 5.0  # MiB that a session may take beside what a loaded model takes


class Notebook:
    """Cells run in a kernel of their own, one after the other, with errors as in a notebook. facts: what cells told, by their numbers."""

    def __init__(self, *cells: str | tuple[str, float]):
        """A cell with a number is interrupted after so many seconds, by the kernel's client."""
        given = [(cell, None) if isinstance(cell, str) else cell for cell in (BEGIN, *cells)]
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source, _ in given])
        seconds = {cell["id"]: limit for cell, (_, limit) in zip(book.cells, given, strict=True)}
        client = nbclient.NotebookClient(
            book, kernel_name="python3", allow_errors=True, interrupt_on_timeout=True, timeout_func=lambda cell: seconds[cell["id"]] or 120
        )
        client.execute()
        self.cells = book.cells
        self.facts: dict[str, Any] = {}
        for output in (output for cell in book.cells for output in cell.outputs):
            if output.output_type == "stream" and output.name == "stdout":
                for line in output.text.splitlines():
                    if line.startswith("{"):
                        self.facts |= json.loads(line)

    def error(self, cell: int) -> str:
        """Name of the exception that ended a cell, `` where none did."""
        return next((output.ename for output in self.cells[cell].outputs if output.output_type == "error"), "")

    def shown(self, cell: int) -> str:
        """The value of a cell's last line, as text."""
        return next(output.data["text/plain"] for output in self.cells[cell].outputs if output.output_type == "execute_result")

    def no_errors_but(self, **expected: str) -> None:
        found = {f"cell{number}": self.error(number) for number in range(len(self.cells)) if self.error(number)}
        assert found == expected, [output for cell in self.cells for output in cell.outputs]


@pytest.fixture
def session(record_property: Callable[[str, object], None]) -> Callable[..., Notebook]:
    """session(cell, ...): run, and the counts noted in the report of the tests."""

    def run(*cells: str | tuple[str, float]) -> Notebook:
        book = Notebook(*cells)
        for name, value in book.facts.items():
            record_property(name, value)
            print(name, value)
        return book

    return run


def test_interrupt(session: Callable[..., Notebook]) -> None:
    """By the kernel's client, and at 40 moments of a text and of a prompt: the model goes on as before, with the same threads."""
    book = session(
        ("while True:\n    for piece in model.generate(PROMPT, max_tokens=-1): pass", 3),
        "told(after=text(model) == expected, counts=counts(), loaded=loaded)",
        """
caught, wrong = 0, 0
for number in range(40):
    try:
        interrupted_after(0.002 + 0.05 * random.random())
        while True:
            model.logits(list(range(2, 300)), every=True)
            left = model.generate(PROMPT, max_tokens=40, seed=1)
            left.text
    except KeyboardInterrupt:
        caught += 1
    wrong += text(model) != expected
told(caught=caught, wrong=wrong, finish=left.finish, again=counts())
""",
        "model.close()\ndel model\ntold(closed=counts(), before=before)",
    )
    book.no_errors_but(cell1="KeyboardInterrupt")
    facts = book.facts
    assert facts["after"] and (facts["caught"], facts["wrong"]) == (40, 0) and facts["finish"] in ("interrupted", "length")
    assert facts["counts"][0] == facts["again"][0] == facts["loaded"][0] == facts["before"][0] + 1 == facts["closed"][0] + 1
    assert facts["again"][1] < facts["loaded"][1] + 4 * MORE  # logits of 298 tokens, twice


def test_rerun(session: Callable[..., Notebook]) -> None:
    """The same cell again and again shows the same text, and takes no more memory."""
    cell = "answer = model.generate(PROMPT, max_tokens=24, seed=1)\nanswer"
    book = session(cell, "told(first=counts(), text=expected)", *[cell] * 12, "told(last=counts(), printed=str(answer))\nprint(answer)")
    book.no_errors_but()
    facts = book.facts
    assert {book.shown(number) for number in (1, *range(3, 15))} == {facts["text"]} == {facts["printed"]}
    assert facts["last"][0] == facts["first"][0] and facts["last"][1] < facts["first"][1] + MORE


def test_two_models(session: Callable[..., Notebook]) -> None:
    """Side by side, and one gone while the other writes."""
    book = session(
        """
other = load("tiny-a4.8", threads=2)
alone = text(other)
pieces = list(zip(model.generate(PROMPT, max_tokens=24, seed=1), other.generate(PROMPT, max_tokens=24, seed=1)))
told(both=counts(), loaded=loaded, same=text(model) == expected and text(other) == alone)
""",
        "left = model.generate(PROMPT, max_tokens=24, seed=1)\nfirst = next(left)\nother.close()\ndel other",
        "told(one=counts(), rest=first + ''.join(left) == expected)",
        "model.close()\ndel model\ntold(none=counts(), before=before)",
    )
    book.no_errors_but()
    facts = book.facts
    assert facts["same"] and facts["rest"]
    assert [facts[name][0] - facts["before"][0] for name in ("loaded", "both", "one", "none")] == [1, 2, 1, 0]
    assert facts["one"][1] < facts["loaded"][1] + 2 * MORE


def test_async(session: Callable[..., Notebook]) -> None:
    """Several texts at once while the event loop goes on; one that is cancelled in the middle."""
    book = session(
        """
import asyncio

async def whole(seed):
    return "".join([piece async for piece in model.generate(PROMPT, max_tokens=24, seed=seed)])

async def ticking():
    while True:
        ticks.append(time.perf_counter())
        await asyncio.sleep(0.001)

ticks = []
ticker = asyncio.ensure_future(ticking())
alone = [text(model, seed) for seed in range(4)]
together = await asyncio.gather(*[whole(seed) for seed in range(4)])
told(same=together == alone, ticks=len(ticks), counts=counts())
""",
        """
async def endless():
    while True:
        async for piece in model.generate(PROMPT, max_tokens=-1): pass

task = asyncio.ensure_future(endless())
await asyncio.sleep(0.2)
task.cancel()
try:
    await task
except asyncio.CancelledError:
    pass
told(cancelled=task.cancelled(), after=await whole(1) == expected)
""",
        """
ticker.cancel()
for _ in range(20): await asyncio.gather(*[whole(seed) for seed in range(4)])
told(later=counts())
""",
    )
    book.no_errors_but()
    facts = book.facts
    assert facts["same"] and facts["cancelled"] and facts["after"] and facts["ticks"] > 3
    assert facts["later"][0] <= facts["counts"][0] + 4  # asyncio's own, which wait for work
    assert facts["later"][1] < facts["counts"][1] + MORE


def test_threads(session: Callable[..., Notebook]) -> None:
    """Texts of several threads, Ctrl-C in the main one, a text that two share, and a model that is closed while another thread writes."""
    book = session(
        """
found = {}
def work(seed): found[seed] = text(model, seed)
def together():
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers: worker.start()
    for worker in workers: worker.join(60)
    return not any(worker.is_alive() for worker in workers)
alone = {seed: text(model, seed) for seed in range(6)}
told(done=together(), same=found == alone, counts=counts(), loaded=loaded)
""",
        """
wrong = 0
for number in range(20):
    found.clear()
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers: worker.start()
    try:
        interrupted_after(0.002 + 0.02 * random.random())
        while True: text(model, 9, 60)
    except KeyboardInterrupt:
        pass
    for worker in workers: worker.join(60)
    wrong += found != {seed: alone[seed] for seed in range(3)}
told(interrupted_wrong=wrong, after=counts())
""",
        """
shared, parts = model.generate(PROMPT, max_tokens=24, seed=1), []
readers = [threading.Thread(target=lambda: parts.extend(shared)) for _ in range(3)]
for reader in readers: reader.start()
for reader in readers: reader.join(60)
told(shared=sorted(parts) == sorted(model.generate(PROMPT, max_tokens=24, seed=1)))
""",
        """
def endless():
    try:
        while True: text(model, 3, -1)
    except BitnetError as error:
        told(error=str(error))
writer = threading.Thread(target=endless)
writer.start()
time.sleep(0.1)
model.close()
writer.join(60)
told(alive=writer.is_alive())
del model
told(closed=counts(), before=before)
""",
    )
    book.no_errors_but()
    facts = book.facts
    assert facts["done"] and facts["same"] and facts["interrupted_wrong"] == 0 and facts["shared"]
    assert (facts["error"], facts["alive"]) == ("this model is closed", False)
    assert facts["counts"][0] == facts["after"][0] == facts["loaded"][0] == facts["closed"][0] + 1 == facts["before"][0] + 1
    assert facts["after"][1] < facts["counts"][1] + MORE


def test_exception(session: Callable[..., Notebook]) -> None:
    """Texts that exceptions left behind, which IPython keeps with their tracebacks, keep nobody waiting and take no room."""
    book = session(
        "for piece in model.generate(PROMPT, max_tokens=-1): raise ValueError('mine')",
        """
start = time.perf_counter()
told(after=text(model) == expected, counts=counts(), loaded=loaded, used=model._opened.engine.pages.used)
""",
        """
kept = []
for number in range(30):
    try:
        for piece in model.generate(PROMPT + " unto" * number, max_tokens=-1): raise ValueError("mine")
    except ValueError as error:
        kept.append(error)  # with the frames, and in them the texts
long = model.generate(list(range(2, 402)), max_tokens=100, seed=1)
alone = long.text
told(length=len(long.ids), rests=len(kept), same=text(model) == expected)
waits = []
other = threading.Thread(target=lambda: waits.append(text(model) == expected))
other.start()
other.join(30)
told(other=waits, many=counts())
""",
        "with load(threads=2) as one:\n    for piece in one.generate(PROMPT): raise KeyError('of the user')",
        "kept.clear()\nmodel.close()\nmodel.close()\ntold(closed=counts(), before=before)",
        "text(model)",
    )
    book.no_errors_but(cell1="ValueError", cell4="KeyError", cell6="BitnetError")
    facts = book.facts
    assert facts["after"] and facts["same"] and (facts["length"], facts["rests"], facts["other"]) == (100, 30, [True])
    assert facts["counts"][0] == facts["many"][0] == facts["loaded"][0] == facts["closed"][0] + 1
    assert facts["many"][1] < facts["counts"][1] + 2 * MORE


def test_reload(session: Callable[..., Notebook]) -> None:
    """`model = load()` frees the old one: eight times leave no thread, and at most 5 MiB. So do eight that nobody closes or keeps."""
    book = session(
        "model = load(threads=2)\ntext(model)\ntold(first=counts())",
        *["model = load(threads=2)\nassert text(model) == expected"] * 8,
        "told(last=counts())",
        "for number in range(8): text(load(threads=2))\ntold(unnamed=counts())",
        "for piece in model.generate(PROMPT): raise ValueError",
        "model = load(threads=2)\ntext(model)",
        "1 / 0  # the last exception is all that held the old model",
        "told(left=counts())",
    )
    book.no_errors_but(cell12="ValueError", cell14="ZeroDivisionError")
    facts = book.facts
    assert facts["last"][0] == facts["unnamed"][0] == facts["left"][0] == facts["first"][0]
    assert max(facts["last"][1], facts["unnamed"][1]) <= facts["first"][1] + MORE
