"""`bitnet bench`: open a model, measure every setup, print rows. Results go to stdout, progress and warnings to stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bitnet_kernels import isa

from bitnet_cli.commands.bench import output, rows
from bitnet_cli.commands.bench.limits import compile_loops, matmul_rate, read_rates
from bitnet_cli.commands.bench.measure import Result, Runner, token_ids
from bitnet_cli.commands.bench.plan import Plan, Setup, Test, make_plan
from bitnet_cli.commands.compiling import compiling
from bitnet_cli.commands.opening import find_model
from bitnet_cli.commands.reporting import Reporter
from bitnet_cli.errors import UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.machine.energy import Meter
from bitnet_cli.machine.threads import physical_cores
from bitnet_cli.model.config import NO_TEXT, read_config
from bitnet_cli.model.decoder import Decoder


@dataclass(frozen=True)
class Lists:
    """Options that are lists, as written on the command line."""

    prompt: str
    gen: str
    depth: str
    threads: str
    cache_type: str
    weights: str
    top: str


@dataclass(frozen=True)
class Choices:
    """The other options."""

    repeats: int
    warm_up: bool
    kind: str  # of output.FORMATS
    save: Path | None
    power: rows.Power
    quiet: bool


def bench(model: str | None, lists: Lists, choices: Choices) -> None:
    """Measure and print (see options/ for the options). model: as users name it; None: the embedded one."""
    plan = make_plan(**vars(lists), repeats=choices.repeats, warm_up=choices.warm_up, cores=physical_cores())
    output.require_writable(choices.save)
    try:
        isa.chosen()
    except isa.InstructionSetError as error:
        raise UnsupportedError(str(error)) from None
    with open_gguf(find_model(model)) as file:
        run = Run(file, plan, choices)
        try:
            run.measure()
        finally:  # after Ctrl-C too: what is done
            run.write()


@dataclass
class Run:
    """All setups of a plan on one file."""

    file: GGUFFile
    plan: Plan
    choices: Choices
    table: list[rows.Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.choices.quiet)
        config = read_config(self.file)
        if config.pooling is not None:
            raise UnsupportedError(f"{self.file.path}: {NO_TEXT}")
        if self.plan.context > config.context:
            raise UsageError(f"-d, -p and -n need a context of {self.plan.context} tokens; the model was trained for {config.context}")
        self.ids, tokens = token_ids(self.file, config.vocab, self.plan.context + 128)
        self.meter = Meter()
        self.meter.measure_idle()
        self.machine, self.model = rows.Machine.here(), rows.model_keys(self.file) | {"tokens": tokens}

    def measure(self) -> None:
        """Fill the table; what is done is in it after Ctrl-C too."""
        with self._progress() as done:
            for setup in self.plan.setups:
                results: list[Result] = []
                read: list[float] = []
                peak: list[float] = []
                try:
                    self._one_setup(setup, results, read, peak, done)
                finally:
                    for result in results:
                        if result.samples:
                            self.table.append(self._row(setup, result, read, peak))

    def _one_setup(self, setup: Setup, results: list[Result], read: list[float], peak: list[float], done: Callable[[Test], None]) -> None:
        # A little more than the tests: the parts of a token are timed in the middle of them, in whole chunks.
        context = min(self.plan.context + 128, read_config(self.file).context)
        decoder = Decoder(self.file, context=context, threads=setup.threads, cache_type=setup.cache_type, weight_bits=setup.weights)
        try:
            with compiling(self.choices.quiet):
                decoder.start()
                compile_loops()
            if any(test.n_prompt for test in self.plan.tests):
                peak.append(matmul_rate(setup.threads))
            read += read_rates(self.file.file_bytes(), setup.threads)
            runner = Runner(decoder, self.ids, self.meter)
            if self.plan.warm_up:
                runner.warm_up(self.plan)
            runner.run(self.plan, results, done)
            read += read_rates(self.file.file_bytes(), setup.threads)
        finally:
            decoder.close()

    def _row(self, setup: Setup, result: Result, read: list[float], peak: list[float]) -> rows.Row:
        row = rows.base_row(self.machine, self.model, setup, result)
        row |= rows.timing_keys([sample.ns for sample in result.samples], result.test.tokens)
        row |= rows.limit_keys(result, read, max(peak, default=0.0))
        return row | rows.energy_keys(result, self.model, self.choices.power, self.meter.idle_watts, self.meter.reason)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[Test], None]]:
        """A function to call after each sample; it moves a bar on a terminal."""
        if not self.reporter.on_terminal:
            yield lambda _test: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("bench {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        total = len(self.plan.setups) * len(self.plan.tests) * self.plan.repeats
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("warm-up", total=total)
            yield lambda test: bar.update(task, advance=1, description=test.name)

    def write(self) -> None:
        """Print the rows, keep them as JSON if so wished, and warn where the machine was noisy."""
        if not self.table:
            return
        sys.stdout.write(output.write_rows(self.table, self.choices.kind))
        sys.stdout.flush()
        if self.choices.save is not None:
            self.choices.save.write_text(output.write_rows(self.table, "json"), encoding="utf-8")
        noisy = [row for row in self.table if row["noisy"]]
        if noisy:
            worst = max(noisy, key=lambda row: float(row["spread"]))
            self.reporter.warn(
                f"noisy: samples of {len(noisy)} of {len(self.table)} tests are more than {100 * rows.NOISY:.0f} % apart from their median "
                f"({worst['test']}: +-{100 * worst['spread']:.0f} %); other work, or a throttled or shared CPU? Wait, or raise -r"
            )
