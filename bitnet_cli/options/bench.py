"""Options of `bitnet bench`, and of `bitnet bench compare` and `bitnet bench report`."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet_cli.options.completion import several
from bitnet_cli.options.pages import Command, Group
from bitnet_cli.options.shared import ModelOption


class ModelOrCommand(Group):
    """`bitnet bench MODEL` besides `bitnet bench -m MODEL`: a first word that names no command is a model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer's."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["-m", *args]
        return super().parse_args(ctx, args)


NAME = "bench"
# Names of commands.bench.shapes.SHAPES.
DUMMIES = ("125M", "350M", "700M", "1B", "1.5B", "2.5B", "2B-4T", "3.8B", "7B", "13B", "30B", "70B", "100B")
SHAPES = (*DUMMIES, "bonsai-1.7B", "bonsai-4B", "bonsai-8B")
app = typer.Typer(name=NAME, cls=ModelOrCommand, context_settings={"help_option_names": ["-h", "--help"]})


class Format(str, Enum):
    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


class HiddenAct(str, Enum):
    relu2 = "relu2"
    silu = "silu"


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    model: ModelOption = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="SHAPE[,SHAPE]",
            help=f"Instead of a model, random weights in a published shape: {', '.join(SHAPES)}. What memory does not hold is projected "
            "from some of its layers.",
            autocompletion=several(*SHAPES),
        ),
    ] = None,
    projected: Annotated[bool, typer.Option("--projected", help="With --shape: project even what memory holds.")] = False,
    hidden_act: Annotated[HiddenAct, typer.Option("--hidden-act", help="With --shape: relu2 has exact zeros to skip.")] = HiddenAct.relu2,
    prompt: Annotated[str, typer.Option("-p", "--n-prompt", metavar="N[,N]", help="Prefill: tokens of the prompt; 0: none.")] = "512",
    gen: Annotated[str, typer.Option("-n", "--n-gen", metavar="N[,N]", help="Decode: tokens one by one; 0: none.")] = "128",
    texts: Annotated[
        str, typer.Option("-npl", "--n-parallel", metavar="N[,N]", help="Texts at once: N prompts of -p, then -n tokens of each.")
    ] = "",
    depth: Annotated[str, typer.Option("-d", "--n-depth", metavar="N[,N]", help="Tokens in the KV cache before.")] = "0",
    threads: Annotated[str, typer.Option("-t", "--threads", metavar="N[,N]", help="0: physical cores this process may use.")] = "0",
    cache_type: Annotated[str, typer.Option("--cache-type", metavar="TYPE[,TYPE]", help="KV cache: f32, f16, q8, q4, q3.")] = "f16",
    weights: Annotated[
        str, typer.Option("--weights", metavar="BITS[,BITS]", help="Bits a weight that decode reads: auto, 2, 1.6.")
    ] = "auto",
    activations: Annotated[
        str, typer.Option("--activations", metavar="KIND[,KIND]", help="Of a ReLU² model: a8, a4, fp4; auto: as trained.")
    ] = "auto",
    top: Annotated[
        str, typer.Option("--top-k", metavar="K[,K]", help="Decode: largest logits that are computed, as a sampler needs; 0: all.")
    ] = "40",
    repeats: Annotated[int, typer.Option("-r", "--repetitions", help="Samples of each test.")] = 5,
    warm_up: Annotated[bool, typer.Option("--warmup/--no-warmup", help="Run a little of everything before the first sample.")] = True,
    kernels: Annotated[bool, typer.Option("--kernels", help="Also time each kernel; its first use compiles for some seconds.")] = False,
    output: Annotated[
        Format, typer.Option("-o", "--output", help="What goes to stdout; md, csv and json have llama-bench's names.")
    ] = Format.table,
    save: Annotated[Path | None, typer.Option("--save", help="Also write everything to this JSON file, for compare and report.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png|svg", help="Draw the roofline, and tokens/s against threads and depth.")
    ] = None,
    watts: Annotated[float, typer.Option("--watts", help="Energy: watts that a meter shows under this load.")] = 0.0,
    tdp: Annotated[float, typer.Option("--tdp", help="Energy: the CPU's thermal design power in watts, for an estimate.")] = 0.0,
    tdp_cpus: Annotated[
        int,
        typer.Option("--tdp-cpus", help="Energy: CPUs (hardware threads) of the package that --tdp is of. Default: those of this system."),
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Measure tokens/s, what limits them, and energy. N[,N]: a list; every combination is measured."""
    if context.invoked_subcommand is not None:
        return
    from bitnet_cli.commands.bench import command
    from bitnet_cli.commands.bench.rows import power_of

    lists = command.Lists(prompt, gen, depth, threads, cache_type, weights, activations, top)
    choices = command.Choices(repeats, warm_up, output.value, save, plot, power_of(watts, tdp, tdp_cpus), quiet, kernels, texts)
    command.bench(model, command.Shapes(shape, projected, hidden_act.value), lists, choices)


class CompareFormat(str, Enum):
    table = "table"
    json = "json"


@app.command(cls=Command)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="Results of `bitnet bench --save` or `-o json`.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Results to divide by those of A.")],
    output: Annotated[CompareFormat, typer.Option("-o", "--output")] = CompareFormat.table,
) -> None:
    """Ratio of two runs, test by test, with its uncertainty."""
    from bitnet_cli.commands.bench.compare import compare as command

    command(first, second, output.value)


@app.command(cls=Command)
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.json...", help="Results of `bitnet bench --save` or `-o json`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write; it needs no network.")] = Path("report.html"),
) -> None:
    """One HTML page with the tables and figures of saved runs."""
    from bitnet_cli.commands.bench.report import report as command

    command(files, output)
