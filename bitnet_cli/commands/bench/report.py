"""`bitnet bench report FILES -o report.html`: one page with the tables and figures of saved runs. It loads nothing and runs no script."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

from bitnet_cli import __version__
from bitnet_cli.commands.bench import plot
from bitnet_cli.commands.bench.output import require_writable, write_file
from bitnet_cli.commands.bench.rows import Row
from bitnet_cli.commands.bench.saved import read_rows
from bitnet_cli.commands.bench.tables import Section, about, sections
from bitnet_cli.commands.reporting import say
from bitnet_cli.errors import BadFileError, UsageError

NEEDED = (
    "median_ts",
    "spread",
    "cpu_s_a_token",
    "hidden_act",
    "head_type",
    "model_size",
    "model_n_params",
    "test_time",
    "tokens",
    "energy",
)
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --quiet: #5d5d66; --ground: #ffffff; --rule: #d9d9e0; --band: #f6f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ed; --quiet: #a3a3ad; --ground: #16161a; --rule: #3a3a42; --band: #1f1f25; }
}
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, dl { margin: .25rem 0; } .quiet, .notes { color: var(--quiet); font-size: .87rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; } th.word, td.word { text-align: left; } tbody tr:nth-child(odd) { background: var(--band); }
.notes { padding-left: 1.1rem; margin: .5rem 0; } figure { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: 1rem; }
figure svg { max-width: 100%; height: auto; }
"""


def report(files: Sequence[Path], target: Path) -> None:
    """Write the page. BadFileError: a file is not of `bitnet bench`."""
    require_writable(target)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {target}: expected a name that ends in .html")
    runs = [(path, _complete(path)) for path in files]
    page = render(runs)
    write_file(target, page.encode())
    if not plot.has_plotting():
        say("bitnet: note: without figures: they need matplotlib, pip install matplotlib")


def _complete(path: Path) -> list[Row]:
    rows = read_rows(path)
    for number, row in enumerate(rows):
        missing = [key for key in NEEDED if key not in row]
        if missing:
            raise BadFileError(
                path, f"row {number}: {missing[0]}", "is missing; a report needs files of `bitnet bench`, version 0.1 or newer"
            )
    return rows


def render(runs: Sequence[tuple[Path, Sequence[Row]]]) -> str:
    """The page as text. runs: name and rows of each file."""
    body = [f"<h1>bitnet bench</h1>\n<p class=quiet>{len(runs)} run{'s' * (len(runs) > 1)}, written by bitnet {__version__}</p>"]
    for number, (path, rows) in enumerate(runs):
        times = sorted({str(row["test_time"]) for row in rows})
        title = html.escape(path.name if len(runs) > 1 else str(rows[0]["model_type"]))
        body.append(f"<h2>{title}</h2>\n<p class=quiet>{html.escape(' to '.join(dict.fromkeys((times[0], times[-1]))))}</p>")
        body.append("<dl>" + "".join(f"<dt>{label}</dt><dd>{html.escape(text)}</dd>" for label, text in about(rows)) + "</dl>")
        made = sections(rows)
        body.append(_section(made[0]))
        if plot.has_plotting():
            body.append(f"<figure>{''.join(plot.svgs(rows, f'run{number}'))}</figure>")
        body += [_section(section) for section in made[1:]]
    text = "\n".join(body)
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>bitnet bench</title>'
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>{STYLE}</style>\n</head>\n<body>\n{text}\n</body>\n</html>\n'


def _section(section: Section) -> str:
    parts = [f"<h3>{html.escape(section.title)}</h3>"] if section.title else []
    if len(section.cells) > 1:
        header, lines = _cells(section.cells[0], section.words, "th"), [_cells(cells, section.words, "td") for cells in section.cells[1:]]
        parts.append(f"<div class=wide><table><thead>{header}</thead><tbody>{''.join(lines)}</tbody></table></div>")
    if section.notes:
        parts.append("<ul class=notes>" + "".join(f"<li>{_note(note)}</li>" for note in section.notes) + "</ul>")
    return "\n".join(parts)


def _note(text: str) -> str:
    """A name between backticks is set as code."""
    return re.sub(r"`(\w+)`", r"<code>\1</code>", html.escape(text))


def _cells(cells: Sequence[str], words: int, tag: str) -> str:
    marked = (f"<{tag}{' class=word' if i < words else ''}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(cells))
    return f"<tr>{''.join(marked)}</tr>"
