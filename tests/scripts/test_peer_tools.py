"""scripts/peer_tools.py reads what the programs of llama.cpp and ik_llama.cpp print. The programs here are forged: they check what they
are asked for, and print lines in the form that those have them.
"""

import importlib
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

COMMON = '"n_kv_max": 768, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "n_gpu_layers": -1, "n_threads": 2, "n_threads_batch": 2'


def bench(*rows: str) -> str:
    """As llama-bench -o json prints tests. Sample lists and most of the fields are left out."""
    return (
        "[\n"
        + ",\n".join(f'  {{"build_commit": "0000000", "n_threads": 2, "type_k": "f16", {row}, "stddev_ts": 0.0}}' for row in rows)
        + "\n]"
    )


def batched(texts: int, speed: float) -> str:
    ends = f'"t_pp": 1.0, "speed_pp": 128.0, "t_tg": 4.4, "speed_tg": {speed}, "t": 5.4, "speed": 71.1'
    return f'{{{COMMON}, "is_pp_shared": 0, "pp": 16, "tg": 32, "pl": {texts}, "n_kv": {48 * texts}, {ends}}}'


def swept(number: int) -> str:
    speeds = f'"t_pp": 1.0, "speed_pp": {129 - number}.5, "t_tg": 1.0, "speed_tg": {14 - number}.25'
    return f'{{{COMMON}, "pp": 256, "tg": 32, "n_kv": {256 * number}, {speeds} }}'


AT_START = ('"n_prompt": 256, "n_gen": 0, "n_depth": 0, "avg_ts": 129.0', '"n_prompt": 0, "n_gen": 32, "n_depth": 0, "avg_ts": 14.5')
DEEP = ('"n_prompt": 256, "n_gen": 0, "n_depth": 2048, "avg_ts": 89.4', '"n_prompt": 0, "n_gen": 32, "n_depth": 2048, "avg_ts": 11.5')
BENCH = bench(*AT_START, *DEEP)
OLD_BENCH = bench(*(row.replace('"n_depth": 0, ', "") for row in AT_START))
BATCHED = f"\n{batched(8, 58.1)}\n{batched(16, 64.8)}\n\nllama_perf_context_print:        load time =     500.00 ms\n"
SWEEP = "\n".join(swept(number) for number in range(9))


@pytest.fixture(scope="module")
def tools(repo_root: Path) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo_root / "scripts"))
        yield importlib.import_module("peer_tools")


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Path]:
    """A program that ends with 1 unless it gets these arguments, and else prints a text."""

    def make(text: str, *arguments: str, stream: str = "stdout") -> Path:
        path = tmp_path / "program"
        path.write_text(
            f"#!{sys.executable}\nimport sys\nif sys.argv[1:] != {list(arguments)}:\n    sys.exit(f'got {{sys.argv[1:]}}')\n"
            f"print('loading a model', file=sys.stderr)\nsys.{stream}.write({text!r})\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


MODEL = Path("some model.gguf")
ASKED = ("-m", str(MODEL), "-t", "2")
needs_scripts = pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")


@needs_scripts
def test_llama_bench_at_depths(tools: ModuleType, program: Callable[..., Path]) -> None:
    path = program(BENCH, *ASKED, "-p", "256", "-n", "32", "-d", "0,2048", "-r", "1", "-o", "json")
    figures = tools.llama_bench(path, MODEL, tools.Setup(2, 256, 32, (0, 2048)))
    assert figures == {"prefill": 129.0, "decode": 14.5, "prefill@2048": 89.4, "decode@2048": 11.5}


@needs_scripts
def test_llama_bench_without_depths_is_not_asked_for_them(tools: ModuleType, program: Callable[..., Path]) -> None:
    path = program(OLD_BENCH, *ASKED, "-p", "256", "-n", "32", "-r", "1", "-o", "json")
    assert tools.llama_bench(path, MODEL, tools.Setup(2, 256, 32)) == {"prefill": 129.0, "decode": 14.5}


@needs_scripts
def test_llama_batched_bench(tools: ModuleType, program: Callable[..., Path]) -> None:
    path = program(BATCHED, *ASKED, "-c", "768", "-npp", "16", "-ntg", "32", "-npl", "8,16", "--output-format", "jsonl")
    assert tools.batched_bench(path, MODEL, tools.Setup(2, 256, 32, (0,), (8, 16))) == {"together@8": 58.1, "together@16": 64.8}


@needs_scripts
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_llama_sweep_bench(tools: ModuleType, program: Callable[..., Path], stream: str) -> None:
    """ik_llama.cpp writes its lines as a log. Of the nine depths that it runs through, two are wanted."""
    asked = ("-c", "2304", "-b", "256", "-ub", "256", "-n", "32", "--output-format", "jsonl")
    path = program(SWEEP, *ASKED, *asked, stream=stream)
    figures = tools.sweep_bench(path, MODEL, tools.Setup(2, 256, 32, (0, 2048)))
    assert figures == {"prefill": 129.5, "decode": 14.25, "prefill@2048": 121.5, "decode@2048": 6.25}
    with pytest.raises(ValueError, match="multiples of the prompt, 256 tokens, not at 1000"):
        tools.sweep_bench(path, MODEL, tools.Setup(2, 256, 32, (0, 1000)))


@needs_scripts
def test_a_program_that_fails_is_an_error(tools: ModuleType, program: Callable[..., Path]) -> None:
    for tool in tools.TOOLS.values():
        with pytest.raises(subprocess.CalledProcessError):
            tool(program("", "nothing"), MODEL, tools.Setup(2, 256, 32, (0,), (8,)))


def test_tables(tools: ModuleType) -> None:
    """A line for each engine that has figures at a depth, cells for what it has."""
    compare = importlib.import_module("compare_peers")
    ours = {"prefill": 200.0, "decode": 40.0, "decode_all": 30.0, "prefill@2048": 150.0, "decode@2048": 35.0, "together@8": 150.0}
    ours |= {"read_rate": 5e10, "decode_read_share": 0.8, "decode_all_read_share": 0.9}
    results = {"2B-4T/F16": {"ours": [ours, ours | {"prefill": 220.0}], "ik": [{"decode": 14.5, "together@8": 58.1}]}}
    assert compare.table(results).splitlines()[2:] == [
        "| 2B-4T | F16 | bitnet | 210.0 ± 5 % | 40.0 ± 0 % | 80 % |",
        "| 2B-4T | F16 | bitnet, all logits | 210.0 ± 5 % | 30.0 ± 0 % | 90 % |",
        "| 2B-4T | F16 | ik |  | 14.5 ± 0 % |  |",
    ]
    assert compare.table(results, 2048).splitlines()[2:] == ["| 2B-4T | F16 | bitnet | 150.0 ± 0 % | 35.0 ± 0 % |  |"]
    assert compare.batch_table(results, [8, 16]).splitlines() == [
        "| shape | head | engine | 8 texts tok/s | 16 texts tok/s |",
        "|---|---|---|---|---|",
        "| 2B-4T | F16 | bitnet | 150.0 ± 0 % |  |",
        "| 2B-4T | F16 | ik | 58.1 ± 0 % |  |",
    ]
