"""Rows -> figures: the roofline of this machine with the measured points in it, and tokens/s against threads and depth.

Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart, with grey for black, which a dark page would hide;
markers differ as well. matplotlib is an optional
dependency, imported when a figure is wanted.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli.commands.bench.output import require_writable, write_file
from bitnet_cli.commands.bench.rows import Row
from bitnet_cli.commands.bench.tables import KERNEL_TITLES, NAMES, digits
from bitnet_cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = Callable[["Axes"], None]
FORMATS = (".png", ".svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
MARKERS = "osD^vPX"
INK = "#1b1b1f"  # of text and axes
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "bitnet",
}
PANEL = (5.6, 4.2)  # inches
LOG_FROM = 20  # times the slowest, from which on tokens/s are drawn on a logarithmic axis


def require_plotting(path: Path | None) -> None:
    """UsageError where a figure could not be written: before an hour of measuring, not after it."""
    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: expected a name that ends in {' or '.join(FORMATS)}")
    require_writable(path)
    if not has_plotting():
        raise UsageError("--plot needs matplotlib: pip install matplotlib")


def has_plotting() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """One file with every panel that the rows have data for. A PNG has 160 dots an inch."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        kind, drawn = path.suffix.lower()[1:], io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        _figure(_panels(rows, INK), INK).savefig(drawn, format=kind, dpi=160, facecolor="white", metadata=metadata)
    write_file(path, drawn.getvalue())


def svgs(rows: Sequence[Row], name: str) -> list[str]:
    """Each panel of `write_plot` as an SVG element for a page, whose colours of text and background it takes. name: one for these only."""
    from matplotlib import rc_context

    stand_in, drawn = "#010203", []
    for number, panel in enumerate(_panels(rows, stand_in)):
        text = io.StringIO()
        with rc_context(STYLE | {"svg.hashsalt": f"{name}-{number}"}):
            _figure([panel], stand_in).savefig(text, format="svg", transparent=True, metadata={"Date": None})
        drawn.append(text.getvalue()[text.getvalue().index("<svg") :].replace(stand_in, "currentColor"))
    return drawn


def _figure(panels: Sequence[Panel], ink: str) -> Figure:
    """Panels, two in a row."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"):
        rcParams[key] = ink
    columns = min(2, len(panels))
    lines = -(-len(panels) // 2)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    for number, draw in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.grid(True, which="major", alpha=0.25, linewidth=0.6)
        draw(axes)
    return figure


def _panels(rows: Sequence[Row], ink: str) -> list[Panel]:
    """What there is to draw."""
    panels: list[Panel] = []
    if any("read_bytes_per_s" in row for row in rows):
        panels.append(lambda axes: _roofline(axes, rows, ink))
    for key, title in (("n_threads", "threads"), ("n_depth", "tokens in the KV cache")):
        for kind, tests in (("decode", _decode(rows)), ("prefill", _prefill(rows))):
            if len({row[key] for row in tests}) > 1:
                panels.append(lambda axes, key=key, title=title, kind=kind, tests=tests: _curve(axes, tests, key, title, kind))  # type: ignore[misc]
    if not panels:
        for kind, tests in (("decode", _decode(rows)), ("prefill", _prefill(rows))):
            if tests:
                panels.append(lambda axes, kind=kind, tests=tests: _bars(axes, tests, kind))  # type: ignore[misc]
    for tests in (_decode(rows), _prefill(rows)):
        timed = [row for row in tests if row.get("kernels")]
        if timed:
            panels.append(lambda axes, row=timed[0]: _kernels(axes, row))  # type: ignore[misc]
    return panels


def _decode(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["n_gen"]]


def _prefill(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["n_prompt"]]


def _label(row: Row, rows: Sequence[Row], without: Sequence[str] = ()) -> str:
    """What tells this row from others: the choices that differ between them, and its test."""
    varied = [key for key in NAMES if key not in without and len({r[key] for r in rows}) > 1]
    return ", ".join(Path(row[key]).name if key == "model_filename" else f"{NAMES[key]} {row[key]}" for key in varied)


def _roofline(axes: Axes, rows: Sequence[Row], ink: str) -> None:
    """Operations/s over operations a byte. What is under the slope waits for memory, what is under the flat roof for arithmetic."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    points = [row for row in rows if "read_bytes_per_s" in row]
    xs = [row["ops_a_token"] / row["bytes_a_token"] for row in points]
    low, high = min(1.0, *(x / 2 for x in xs)), max(3000.0, *(3 * x for x in xs))
    threads = sorted({row["n_threads"] for row in points})
    for number, count in enumerate(threads):
        here = [row for row in points if row["n_threads"] == count]
        read = max(row["read_bytes_per_s"] for row in here)
        peak = max((row["peak_ops_per_s"] for row in here if "peak_ops_per_s" in row), default=0.0)
        ridge = peak / read if peak else high
        corner = [low, ridge, high] if low < ridge < high else [low, high]
        roof = [min(x * read, peak or x * read) / 1e9 for x in corner]
        colour = COLOURS[number % len(COLOURS)]
        said = f"{count} thread{'s' * (count > 1)}: {read / 1e9:.0f} GB/s" + (f", {peak / 1e9:.0f} Gop/s" if peak else "")
        axes.plot(corner, roof, color=colour, linewidth=1.6, label=said)
        for tests, marker in ((_decode(here), "o"), (_prefill(here), "s")):
            x = [row["ops_a_token"] / row["bytes_a_token"] for row in tests]
            y = [row["ops_per_s"] / 1e9 for row in tests]
            axes.plot(x, y, marker, color=colour, markersize=6, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte read", ylabel="Gop/s (1 multiply-add = 2 op)", title="Roofline")
    axes.plot([], [], "o", color=ink, markersize=6, label="decode")
    axes.plot([], [], "s", color=ink, markersize=6, label="prefill")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=12))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _curve(axes: Axes, rows: Sequence[Row], key: str, title: str, kind: str) -> None:
    """Median tokens/s, with the range of the samples, against one choice; a line for each combination of the others."""
    other = "n_depth" if key == "n_threads" else "n_threads"
    lines: dict[str, list[Row]] = {}
    for row in rows:
        name = _label(row, rows, without=[key])
        if other == "n_depth" and len({r["n_depth"] for r in rows}) > 1:
            name = ", ".join(filter(None, [name, f"depth {row['n_depth']}"]))
        lengths = {r["n_prompt"] or r["n_gen"] for r in rows}
        if len(lengths) > 1:
            name = ", ".join(filter(None, [name, f"{row['n_prompt'] or row['n_gen']} tokens"]))
        lines.setdefault(name, []).append(row)
    for number, (name, unsorted) in enumerate(lines.items()):
        members = sorted(unsorted, key=lambda row: int(row[key]))
        x, y = [row[key] for row in members], [row["median_ts"] for row in members]
        below = [row["median_ts"] - min(row["samples_ts"]) for row in members]
        above = [max(row["samples_ts"]) - row["median_ts"] for row in members]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.errorbar(x, y, [below, above], color=colour, marker=marker, markersize=5, capsize=3, linewidth=1.4, label=name or None)
    axes.set(xlabel=title, ylabel=f"{kind}, tokens/s", title=f"{kind.capitalize()} against {title}")
    rates = [row["median_ts"] for row in rows]
    if max(rates) > LOG_FROM * min(rates):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({row[key] for row in rows}))
    if len(lines) > 1:  # under the axes, where it hides nothing
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0)


def _kernels(axes: Axes, row: Row) -> None:
    """Microseconds of a token in each kernel, the slowest first."""
    kernels = sorted(row["kernels"], key=lambda kernel: -float(kernel["ns_a_token"]))
    values = [kernel["ns_a_token"] / 1e3 for kernel in kernels]
    axes.barh(range(len(kernels)), values, color=COLOURS[0], height=0.6)
    for place, value in enumerate(values):
        share = f"{100 * value / sum(values):.0f} %"
        axes.annotate(share, (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(kernels)), [KERNEL_TITLES.get(kernel["name"], kernel["name"]) for kernel in kernels])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.grid(False, axis="y")
    axes.set(xlabel="µs a token", title=f"{row['test']}, {row['n_threads']} thread{'s' * (row['n_threads'] > 1)}: time per kernel")


def _bars(axes: Axes, rows: Sequence[Row], kind: str) -> None:
    """Median tokens/s of each row."""
    names = [", ".join(filter(None, [row["test"], _label(row, rows)])) for row in rows]
    values = [row["median_ts"] for row in rows]
    axes.barh(range(len(rows)), values, color=COLOURS[0], height=0.6)
    for place, value in enumerate(values):
        axes.annotate(digits(value), (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(max(len(rows), 4) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set(xlabel=f"{kind}, tokens/s", title=kind.capitalize())
