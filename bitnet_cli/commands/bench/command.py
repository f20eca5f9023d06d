"""`bitnet bench`: open a model, measure every setup, print rows. Results go to stdout, progress and warnings to stderr."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnet_kernels import isa

from bitnet_cli.commands.bench import output, plot, rows
from bitnet_cli.commands.bench.batched import MOST, Batcher, batches, write
from bitnet_cli.commands.bench.limits import Peak, compile_loops, peak_rates, read_rates
from bitnet_cli.commands.bench.measure import Result, Runner, token_ids
from bitnet_cli.commands.bench.plan import BenchPlan, Setup, make_plan, numbers, words
from bitnet_cli.commands.bench.project import Layers, layers_to_measure, memory_bytes, method
from bitnet_cli.commands.bench.shapes import SHAPES, temporary_model
from bitnet_cli.commands.compile_progress import compiling
from bitnet_cli.commands.loading import find_model, warn_of_threads
from bitnet_cli.commands.reporting import Reporter, put
from bitnet_cli.errors import UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.layer_table import layer_weights
from bitnet_cli.machine.energy import Meter
from bitnet_cli.machine.threads import physical_cores
from bitnet_cli.model.config import NO_TEXT, read_config
from bitnet_cli.model.engine import CHUNK_TOKENS, Engine
from bitnet_cli.model.kernel_times import KernelTimer, require_timed_kernels
from bitnet_cli.model.sequence import Sequence


@dataclass(frozen=True)
class Lists:
    """Options that are lists, as written on the command line."""

    prompt: str
    gen: str
    depth: str
    threads: str
    cache_type: str
    weights: str
    activations: str
    top: str


@dataclass(frozen=True)
class Shapes:
    """Options about models that do not exist. names: as written, None where a model file is measured."""

    names: str | None
    projected: bool
    activation: str  # of hidden units, relu2 or silu


@dataclass(frozen=True)
class Choices:
    """The other options."""

    repeats: int
    warm_up: bool
    kind: str  # of output.FORMATS
    save: Path | None
    plot: Path | None
    power: rows.Power
    quiet: bool
    kernels: bool = False  # time each
    texts: str = ""  # at once (batched.py), a list; empty: one text, as llama-bench


def bench(model: str | None, shapes: Shapes, lists: Lists, choices: Choices) -> None:
    """Measure and print (see options/ for the options). model: as users name it; None: the embedded one."""
    plan = make_plan(**vars(lists), repeats=choices.repeats, warm_up=choices.warm_up, cores=physical_cores())
    names = words(shapes.names, "--shape", list(SHAPES)) if shapes.names is not None else []
    if names and model is not None:
        raise UsageError("give -m or --shape, not both")
    if shapes.projected and not names:
        raise UsageError("--projected is for --shape; a model file is always run whole")
    if choices.texts and (choices.kernels or choices.save or choices.plot or shapes.projected):
        raise UsageError("-npl measures whole texts: not with --kernels, --save, --plot or --projected")
    output.require_writable(choices.save)
    plot.require_plotting(choices.plot)
    try:
        isa.chosen()
    except isa.InstructionSetError as error:
        raise UnsupportedError(str(error)) from None
    if choices.kernels:
        require_timed_kernels()
    run = Run(plan, choices, max(len(names), 1))
    try:
        most = max(setup.threads for setup in plan.setups)
        warn_of_threads(run.reporter, most)
        with run.progress():
            for name in names:
                _measure_shape(run, name, shapes)
            if not names:
                with open_gguf(find_model(model)) as file:
                    run.measure(file)
    finally:  # after Ctrl-C too: what is done
        run.write()


def _measure_shape(run: "Run", name: str, shapes: Shapes) -> None:
    shape = SHAPES[name]
    need = max(memory_bytes(shape, setup.cache_type, run.plan.context + CHUNK_TOKENS) for setup in run.plan.setups)
    layers = layers_to_measure(shape, need, shapes.projected)
    run.say(f"making {name}")
    with temporary_model(shape._replace(layers=layers.measured), name, shapes.activation) as file:
        keys: rows.Row = {"model_filename": name, "projected": layers.projected}
        if layers.projected:
            more = (layers.whole - layers.measured) * layer_weights(shape)
            keys |= {"layers": layers.whole, "layers_measured": layers.measured, "ternary_weights": shape.ternary_weights()}
            keys |= {"more_weights": more, "method": method(layers, shape)}
        run.measure(file, layers, keys)


@dataclass
class Limits:
    """What one setup found: how much the machine can do at most, and the scheme."""

    read: list[float] = field(default_factory=list)  # bytes/s
    peaks: list[Peak] = field(default_factory=list)
    scheme: str = ""  # of activations, as the engine chose


class Run:
    """Rows of all setups of a plan, on one model after the other."""

    def __init__(self, plan: BenchPlan, choices: Choices, models: int):
        self.plan, self.choices = plan, choices
        self.reporter = Reporter(choices.quiet)
        self.table: list[rows.Row] = []
        self.batched: list[dict[str, Any]] = []
        self.meter = Meter()
        self.meter.measure_idle()
        self.machine = rows.Machine.here()
        self._total = models * len(plan.setups) * len(plan.tests) * plan.repeats
        self._update: Callable[..., None] = lambda **_: None

    def measure(self, file: GGUFFile, layers: Layers | None = None, keys: rows.Row | None = None) -> None:
        """Add a model's rows; what is done is there after Ctrl-C too. keys: take the place of those that the file gives."""
        config = read_config(file)
        if config.pooling is not None:
            raise UnsupportedError(f"{file.path}: {NO_TEXT}")
        if self.plan.context > config.context:
            raise UsageError(f"-d, -p and -n need a context of {self.plan.context} tokens; the model was trained for {config.context}")
        self.say("reading")
        ids, tokens = token_ids(file, config.vocab, self.plan.context + CHUNK_TOKENS)
        model = rows.model_keys(file, keys or {}) | {"tokens": tokens}
        for setup in self.plan.setups:
            if self.choices.texts:
                self._many_texts(file, ids, setup)
                continue
            results: list[Result] = []
            limits = Limits()
            try:
                self._one_setup(file, ids, layers or Layers(config.layers, config.layers), setup, results, limits)
            finally:
                self.table += [self._row(model, setup, result, limits) for result in results if result.samples]

    def _one_setup(self, file: GGUFFile, ids: list[int], layers: Layers, setup: Setup, results: list[Result], limits: Limits) -> None:
        # A little more than the tests: the parts of a token are timed in the middle of them, in whole chunks.
        context = min(self.plan.context + CHUNK_TOKENS, read_config(file).context)
        engine = Engine(
            file,
            context=context,
            threads=setup.threads,
            cache_type=setup.cache_type,
            weight_bits=setup.weights,
            activations=setup.activations,
        )
        limits.scheme, text = engine.scheme, Sequence(engine)
        try:
            with compiling(self.choices.quiet):
                engine.start()
                compile_loops()
                timer = KernelTimer(text) if self.choices.kernels else None
            self.say("warm-up")
            self._measure_limits(file, setup.threads, limits)
            runner = Runner(text, ids, self.meter, layers, timer)
            if self.plan.warm_up:
                runner.warm_up(self.plan)
            runner.run(self.plan, results, lambda test: self._update(advance=1, description=test.name))
            self._measure_limits(file, setup.threads, limits)
        finally:
            engine.close()

    def _many_texts(self, file: GGUFFile, ids: list[int], setup: Setup) -> None:
        wanted = batches(self.plan, numbers(self.choices.texts, "-npl", 1, MOST))
        batcher = Batcher(file, setup, wanted, ids, self.plan.tests[-1].top)
        try:
            with compiling(self.choices.quiet):
                batcher.engine.start()
            batcher.warm_up()
            for batch in wanted:
                self.say(f"{batch.texts} texts")
                self.batched.append(batcher.row(batch, self.plan.repeats))
        finally:
            batcher.engine.close()

    def _measure_limits(self, file: GGUFFile, threads: int, limits: Limits) -> None:
        """Before and after the tests: the best counts, so that a machine which becomes faster meanwhile is not beyond its limit."""
        if any(test.n_prompt for test in self.plan.tests):
            limits.peaks.append(peak_rates(threads))
        limits.read += read_rates(file.file_bytes(), threads)

    def _row(self, model: rows.Row, setup: Setup, result: Result, limits: Limits) -> rows.Row:
        row = rows.base_row(self.machine, model, setup, result) | {"activations": limits.scheme}
        row |= rows.timing_keys([sample.ns for sample in result.samples], result.trial.tokens)
        peak = Peak(*(max(rates) for rates in zip(*limits.peaks, strict=True))) if limits.peaks else Peak(0.0, 0.0)
        row |= rows.limit_keys(result, limits.read, peak)
        row |= rows.kernel_keys(result, max(limits.read, default=0.0), peak)
        return row | rows.energy_keys(result, model, self.choices.power, self.meter.idle_watts, self.meter.reason)

    def say(self, what: str) -> None:
        """Show what is being done beside the progress bar."""
        self._update(description=what)

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """On a terminal, a bar that moves with every sample."""
        if not self.reporter.on_terminal:
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("bench {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            self._update = functools.partial(bar.update, bar.add_task("warm-up", total=self._total))
            yield
            self._update = lambda **_: None

    def write(self) -> None:
        """Print the rows, keep them as JSON if so wished, and warn where the machine was noisy."""
        if self.batched:
            put(write(self.batched, self.choices.kind).removesuffix("\n"))
        if not self.table:
            return
        try:  # files first: a pipe may be closed
            if self.choices.save is not None:
                output.write_file(self.choices.save, output.write_rows(self.table, "json").encode())
            if self.choices.plot is not None:
                plot.write_plot(self.table, self.choices.plot)
        finally:
            put(output.write_rows(self.table, self.choices.kind).removesuffix("\n"))
        noisy = [row for row in self.table if row["noisy"]]
        if noisy:
            worst = max(noisy, key=lambda row: float(row["spread"]))
            self.reporter.warn(
                f"noisy: samples of {len(noisy)} of {len(self.table)} tests are more than {100 * rows.NOISY:.0f} % apart from their median "
                f"({worst['test']}: +-{100 * worst['spread']:.0f} %); other work, or a throttled or shared CPU? Wait, or raise -r"
            )
