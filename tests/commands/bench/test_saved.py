"""`bitnet bench compare`, `report` and `--plot`: what saved runs become."""

import errno
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.commands.bench import compare, output, plot, report, saved
from bitnet_cli.commands.bench.rows import Row
from bitnet_cli.errors import BadFileError, BitnetError, UsageError

needs_matplotlib = pytest.mark.skipif(not plot.has_plotting(), reason="matplotlib is not installed")


def row(test: str = "tg8", rates: list[float] | None = None, **keys: Any) -> Row:
    """A row with all keys that are drawn."""
    rates = rates or [100.0, 101.0, 99.0]
    prompt, gen = (int(test[2:]), 0) if test.startswith("pp") else (0, int(test[2:]))
    made: Row = {
        "test": test,
        "n_prompt": prompt,
        "n_gen": gen,
        "n_depth": 0,
        "n_threads": 1,
        "type_k": "f16",
        "weights": "auto",
        "n_top": 40,
        "cpu_info": "A CPU",
        "isa": "avx2",
        "system": "Linux",
        "build_commit": "0",
        "activations": "int8",
        "hidden_act": "relu2",
        "versions": {"bitnet": "0.1.0", "numba": "0.63.0", "numpy": "1.26.4", "python": "3.11.7"},
        "model_filename": "m.gguf",
        "model_type": "<b>m</b> I2_S",
        "model_size": 10**6,
        "model_n_params": 10**7,
        "head_type": "F16",
        "model_sha256": "ab" * 32,
        "model_sha256_of": "file",
        "tokens": "text",
        "test_time": "2026-11-22T10:00:00Z",
        "noisy": False,
        "samples_ts": rates,
        "median_ts": statistics.median(rates),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": 1.0,
        "spread": 0.01,
        "cpu_s_a_token": 0.01,
        "bytes_a_token": 1e6,
        "ternary_bytes_a_token": 6e5,
        "head_bytes_a_token": 3e5,
        "kv_bytes_a_token": 1e5,
        "ops_a_token": 4e6 if gen else 4e8,
        "ops_per_s": 4e8 if gen else 4e10,
        "bytes_per_s": 1e8,
        "read_bytes_per_s": 5e8,
        "read_bytes_per_s_median": 4e8,
        "share_of_read": 0.2,
        "peak_ops_per_s": 1e11,
        "share_of_peak_ops": 0.4,
        "energy": [{"method": "arithmetic", "joules": 1e-6, "low": 5e-7, "high": 1e-6, "note": "arithmetic only", "unit": "J/token"}],
        "energy_not_measured": "no counter",
    }
    kernels = [("ffn_up", 2e6, 1e6, 4e6, 0.5), ("attention", 1e6, 1e5, 1e5, 0.2), ("waiting", 5e5, 0.0, 0.0, None)]
    names = ("name", "ns_a_token", "bytes_a_token", "ops_a_token", "share_of_limit")
    made["kernels"] = [{key: value for key, value in zip(names, kernel, strict=True) if value is not None} for kernel in kernels]
    if gen:
        made |= {f"{part}_ns_a_token": 1e6 for part in ("layers", "attention", "head", "rest")}
    return made | keys


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("freedom", "exact"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (8, 2.306), (30, 2.042), (1e9, 1.960)]
)
def test_quantiles_of_student(freedom: float, exact: float) -> None:
    """Tables of the t distribution, two-sided 95 %."""
    assert compare.t_quantile(freedom) == pytest.approx(exact, abs=0.012)


def test_ratio() -> None:
    """By hand: logarithms 0 and 0.2 against 1.0 and 1.4; variances 0.02 and 0.08, each over two; 2 / (1 + 1/16) * ... degrees."""
    a, b = [1.0, math.exp(0.2)], [math.exp(1.0), math.exp(1.4)]
    ratio, low, high = compare.ratio_of(a, b)
    freedom = (0.01 + 0.04) ** 2 / (0.01**2 + 0.04**2)
    half = compare.t_quantile(freedom) * math.sqrt(0.05)
    assert low is not None and high is not None
    assert [math.log(ratio), math.log(low), math.log(high)] == pytest.approx([1.1, 1.1 - half, 1.1 + half])
    assert compare.ratio_of([2.0], [3.0, 3.1])[1:] == (None, None)
    assert compare.ratio_of([2.0, 2.0], [3.0, 3.0]) == pytest.approx((1.5, 1.5, 1.5))


def test_verdicts_and_pairs() -> None:
    """Rows pair by test and choices; another model's name does not matter where each file has one."""
    first = [row(), row("pp16"), row("tg9"), row(n_threads=2)]
    second = [row(rates=[101.0, 99.0, 102.0]), row("pp16", rates=[300.0, 301.0, 299.0]), row(n_threads=2, rates=[9.0]), row("tg7")]
    found = compare.compare_rows(first, [r | {"model_filename": "other.gguf", "model_type": "other"} for r in second])
    verdicts = [(r.test, r.n_threads, r.verdict) for r in found]
    assert verdicts == [("tg8", 1, "within noise"), ("pp16", 1, "faster"), ("tg8", 2, "one sample: unknown")]
    assert compare.compare_rows(second, first)[1].verdict == "slower"
    assert found[1].ratio == pytest.approx(3, rel=0.01)
    many = [row(), row(model_filename="b.gguf", model_type="b")]
    assert [r.setup.split()[0] for r in compare.compare_rows(many, many)] == ["<b>m</b>", "b"]


def test_what_speaks_against_comparing() -> None:
    same = [row()]
    assert compare.differences(same, [row()]) == []
    other = [row(cpu_info="Another", isa="neon", model_sha256="cd" * 32)]
    said = "; ".join(compare.differences(same, other))
    for words in (
        "different CPUs: A CPU and Another",
        "instruction sets: avx2 and neon",
        "different models",
        "other weights under one name",
    ):
        assert words in said
    assert "1.25 times as fast" in compare.differences(same, [row(read_bytes_per_s_median=5e8)])[0]


def test_compare_as_a_command(bitnet: Callable[..., Any], refused: Callable[..., None], tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", [row(), row("tg9")]), tmp_path / "b.jsonl"
    b.write_text(json.dumps(row(rates=[200.0, 202.0, 198.0], cpu_info="B\x1b[31m")) + "\n")
    done = bitnet("bench", "compare", a, b, check=True)
    assert "2.000" in done.stdout and "faster" in done.stdout
    assert "different CPUs" in done.stderr and "1 rows are in one of the files only" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    ratios = json.loads(bitnet("bench", "compare", a, b, "-o", "json", check=True).stdout)["ratios"]
    assert ratios[0]["ratio"] == pytest.approx(2.0)
    refused(bitnet("bench", "compare", a, write(tmp_path / "c.json", [row("pp3")])), 2, "no test in common")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "are none"),
        ("hello", "not JSON"),
        ("[]", "are none"),
        ("[1]", "row 0"),
        ('{"test": 3}', "row 0: test"),
        ("[" * 100_000, "not JSON"),
        (json.dumps([row(), row() | {"samples_ts": [1.0, -1.0]}]), "row 1: samples_ts"),
        (json.dumps([row() | {"samples_ts": []}]), "samples_ts"),
        (json.dumps([row() | {"samples_ts": [True]}]), "samples_ts"),
        (json.dumps([row() | {"model_filename": ["a"]}]), "row 0: model_filename"),
        (json.dumps([row() | {"isa": "\ud800"}]), "row 0: isa"),
        (json.dumps([row() | {"read_bytes_per_s_median": 0}]), "row 0: read_bytes_per_s_median"),
        (json.dumps([row() | {"versions": {"numba": 1}}]), "row 0: versions"),
        (json.dumps([row() | {"n_top": 1.5}]), "row 0: n_top"),
        (json.dumps([{key: value for key, value in row().items() if key != "ops_per_s"}]), "row 0: ops_per_s"),
        (json.dumps([{key: value for key, value in row().items() if key != "bytes_a_token"}]), "row 0: bytes_a_token"),
        (json.dumps([row() | {"kernels": [{"name": "head", "ns_a_token": "1"}]}]), "kernels"),
        ("\x00\x01", "not JSON"),
    ],
)
def test_files_of_something_else(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(BadFileError, match=re.escape(words)):
        saved.read_rows(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, kind, words in (
        (tmp_path / "missing", UsageError, "missing"),
        (tmp_path, BadFileError, "file: "),
        (tmp_path / "bytes", BadFileError, "not text"),
    ):
        with pytest.raises(kind, match=words):
            saved.read_rows(path)


def test_rows_of_llama_bench_are_compared(tmp_path: Path) -> None:
    """Its files have no name of the test, and none of our keys."""
    keys = ("n_prompt", "n_gen", "n_depth", "n_threads", "type_k", "cpu_info", "model_filename", "model_type", "samples_ts")
    theirs = saved.read_rows(write(tmp_path / "llama.json", [{key: value for key, value in row().items() if key in keys}]))
    assert theirs[0]["test"] == "tg8"
    assert compare.differences(theirs, theirs) == []
    assert len(compare.compare_rows(theirs, theirs)) == 1


class Page(HTMLParser):
    """Tags that are open, attributes, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@needs_matplotlib
def test_report(tmp_path: Path) -> None:
    """Well-formed, nothing to load or to run, names escaped, both colour schemes; figures once a run, with identifiers of their own."""
    files = [write(tmp_path / f"{name}.json", [row(), row("pp16"), row(n_threads=2)]) for name in "ab"]
    report.report(files, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links)
    assert {"svg", "table"} <= page.tags and not page.tags & {"script", "img", "link", "iframe", "b"}
    assert "<b>m</b> I2_S" in page.words
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert re.findall(r"url\((?!#)", text) == [] and "@import" not in text
    ids = re.findall(r'clipPath id="(\w+)"', text)
    assert len(ids) == len(set(ids)) > 1
    for words in (
        "pp16",
        "arithmetic only",
        "no counter",
        "Roofline",
        "operations per byte read",
        "Decode against threads",
        "Time per kernel",
        "waiting at barriers",
    ):
        assert words in text


def test_report_of_other_files(bitnet: Callable[..., Any], refused: Callable[..., None], tmp_path: Path) -> None:
    """No page where a file is bad; the target's old content stays."""
    target = tmp_path / "r.html"
    target.write_text("old")
    bare = {key: value for key, value in row().items() if key != "energy"}
    refused(bitnet("bench", "report", write(tmp_path / "a.json", [bare]), "-o", target), 3, "a.json", "energy")
    assert target.read_text() == "old"
    with pytest.raises(UsageError, match=r"ends in \.html"):
        report.report([], tmp_path / "a.json")


def test_report_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(plot, "has_plotting", lambda: False)
    report.report([write(tmp_path / "a.json", [row()])], tmp_path / "r.html")
    assert "<svg" not in (tmp_path / "r.html").read_text()
    assert "pip install matplotlib" in capsys.readouterr().err
    with pytest.raises(UsageError, match="pip install"):
        plot.require_plotting(tmp_path / "x.png")


@needs_matplotlib
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots(tmp_path: Path, suffix: str) -> None:
    """A panel for the roofline and one for each choice that varies; bars where nothing was measured but rates."""
    path = tmp_path / f"x{suffix}"
    plot.require_plotting(path)
    rows = [row("tg8", n_threads=threads, n_depth=depth) for threads in (1, 2) for depth in (0, 64)]
    plot.write_plot(rows, path)
    assert path.read_bytes()[:4] == (b"\x89PNG" if suffix == ".png" else b"<?xm")
    drawn = "".join(plot.svgs(rows, "x"))
    assert all(title in drawn for title in ("Roofline", "Decode against threads", "Decode against tokens in the KV cache"))
    models = [row(n_threads=1), row(n_threads=2), row(n_threads=1, model_filename="folder/b.gguf", rates=[3.0, 3.1])]
    drawn = plot.svgs(models, "x")[1]
    assert ">b.gguf<" in drawn and ">10<" in drawn  # 33 times slower: tokens/s on a logarithmic axis
    bare = [{key: value for key, value in row().items() if not key.startswith("read")}]
    assert ">100.0<" in "".join(plot.svgs(bare, "x"))


def test_names_of_plots(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        plot.require_plotting(tmp_path / "x.jpg")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write(tmp_path / "kept.json", [row()])
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BitnetError, match=r"kept\.json: the disk is full .* needs 3 bytes"):
        output.write_file(path, b"new")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that closes is a signal's business there")
def test_a_closed_pipe_does_not_cost_the_saved_rows(tmp_path: Path) -> None:
    kept = tmp_path / "rows.json"
    read, write_end = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-m",
        "bitnet_cli",
        "bench",
        "-p",
        "0",
        "-n",
        "1",
        "-r",
        "1",
        "-t",
        "1",
        "-q",
        "-o",
        "json",
        "--save",
        str(kept),
    ]
    done = subprocess.run(
        command, stdout=write_end, stderr=subprocess.PIPE, text=True, env=os.environ | {"BITNET_ISA": "naive"}, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")
    assert [row["test"] for row in json.loads(kept.read_text())] == ["tg1"]
