"""`inspect` says that run works exactly where `run -n 1` does: over small models whose metadata is changed at random, and over inputs that
people's files led to, where a checkout has them beside it. Both commands run in this process, as `main` runs them."""

import io
import json
import random
import re
import signal
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.cli import main
from bitnet_cli.commands.inspect import inspect
from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.metadata import Typed, ValueType, with_type
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf

from ..model.builder import Sizes, random_model, write_model

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[3] / "shared" / "cases"
CHANGES, SEED, AT_LEAST = 500, 12, 150
# Every key that llama.cpp's converters write for the architectures here, and some that change what weights mean.
KEYS = (
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "hidden_activation", "pooling_type"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.scale"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.sliding_window_pattern", "attention.causal"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.finetuned", "rope.scale_linear", "rope.freq_base_swa"),
    *("activation_type", "activation_top_k", "expert_count", "expert_used_count", "use_parallel_residual", "logit_scale", "residual_scale"),
    *("embedding_scale", "attn_logit_softcapping", "final_logit_softcapping", "attention.layer_norm_epsilon", "use_sub_norms"),
)
GLOBAL_KEYS = (
    *("general.architecture", "general.file_type", "general.quantization_version", "general.name", "general.alignment", "split.count"),
    *("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"),
    *("tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"),
    *("tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"),
    *("tokenizer.ggml.add_space_prefix", "tokenizer.chat_template", "prism.hadamard.version", "prism.hadamard.block_size"),
)
VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, 4, 7, 31, 32, 64, 128, 255, 256, 257, 260, 261, 4096, 1 << 31, 1 << 40, -1),
    *(0.0, 1.0, 0.5, 2.0, 1e-5, 1e-30, 10000.0, 500000.0, 1e30, float("nan"), float("inf"), True, False),
    *("", "none", "linear", "yarn", "llama3", "gpt2", "llama", "bert", "default", "qwen2", "int8", "float", "a4.8", "silu", "relu2", "{{"),
)


def changed(entries: dict[str, Typed], rng: random.Random) -> dict[str, Typed]:
    """One or two keys dropped, added, or given another value, of the same type or of another."""
    result, arch = dict(entries), str(entries["general.architecture"].value)
    for _ in range(rng.choice((1, 1, 2))):
        there = rng.choice(list(result))
        key = there if rng.random() < 0.5 else rng.choice((*(f"{arch}.{name}" for name in KEYS), *GLOBAL_KEYS))
        old = result.get(key)
        what = rng.randrange(4)
        if what == 0 and key != "general.architecture":
            result.pop(key, None)
        elif what == 1 and old is not None and isinstance(old.value, (list, array)) and len(old.value):
            result[key] = _changed_items(old, rng)
        elif what == 2 and old is not None and isinstance(old.value, (int, float)) and not isinstance(old.value, bool):
            result[key] = _another_number(old, rng)
        else:
            result[key] = with_type(rng.choice(VALUES))
    return result


def _changed_items(old: Typed, rng: random.Random) -> Typed:
    assert isinstance(old.value, (list, array))
    values, at = old.value[:], rng.randrange(len(old.value))
    if rng.random() < 0.3:
        del values[at]
    elif isinstance(values, list):
        values[at] = rng.choice(("", "Ġ", "<unk>", values[rng.randrange(len(values))], "\udcff", "a b"))
    else:
        values[at] = type(values[at])(rng.choice((0, 1, 2, 3, 4, 5, 6, 7)))
    return Typed(values, old.type, old.item_type)


def _another_number(old: Typed, rng: random.Random) -> Typed:
    assert isinstance(old.value, (int, float))
    if old.type in (ValueType.FLOAT32, ValueType.FLOAT64):
        return Typed(
            rng.choice((old.value * 2, old.value / 3, 0.0, 1.0, -1.0, 1e30, float("nan"))), rng.choice((old.type, ValueType.FLOAT64))
        )
    value = rng.choice((old.value + 1, max(0, old.value - 1), old.value * 2, old.value // 2, 0, 1, old.value))
    return Typed(value, rng.choice((ValueType.UINT32, ValueType.UINT64, ValueType.INT32)) if value < 1 << 31 else ValueType.UINT64)


def sentencepiece() -> dict[str, Any]:
    """Byte tokens, letters and controls: 260 of them."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model of each architecture that writes text, and of each kind of tokenizer."""
    folder, sizes = tmp_path_factory.mktemp("bases"), Sizes(layers=1)
    silu, relu2 = random_model(sizes, activation="silu"), random_model(sizes)
    plain: dict[str, Any] = {f"blk.0.{name}.weight": None for name in ("attn_sub_norm", "ffn_sub_norm")}
    heads = {f"blk.0.{name}.weight": np.ones(32, np.float32) for name in ("attn_q_norm", "attn_k_norm")}
    return [
        write_model(folder / "relu2.gguf", relu2),
        write_model(folder / "old.gguf", relu2, arch="bitnet-25"),
        write_model(folder / "silu.gguf", silu, arch="bitnet", metadata=sentencepiece()),
        write_model(folder / "llama.gguf", silu, arch="llama", tensors=plain),
        write_model(folder / "qwen3.gguf", silu, arch="qwen3", tensors=plain | heads),
    ]


@pytest.fixture
def restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code of `bitnet run -n 1` and what it says on stderr."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))  # an empty document for what would read one
    monkeypatch.setattr(sys, "argv", ["bitnet", "run", "-m", str(path), "-p", "ab", "-n", "1", "--temp", "0", "-t", "1", "-q"])
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, errors.getvalue()


def inspected(path: Path) -> tuple[bool, str]:
    """Whether `bitnet inspect` says that run works, and why not; a file that it refuses whole does not."""
    out = io.StringIO()
    with redirect_stdout(out):
        try:
            inspect(str(path), full=False, tensors=False, as_json=True, quiet=True)
        except BitnetError as error:
            return False, str(error)
    verdict = json.loads(out.getvalue())["commands"]["run"]
    assert not verdict["sampled"]  # small files are read whole
    return bool(verdict["works"]), verdict["reason"] or ""


def disagreement(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str | None]:
    """What is wrong, and why both refuse; None where nothing is, or both work."""
    code, line = run(path, monkeypatch)
    works, reason = inspected(path)
    if works != (code == 0):
        return f"run ends with {code} and says {line!r}; inspect: {reason or 'works'}", None
    if code and (line.count("\n") != 1 or reason.removeprefix(f"{path}: ") not in line):
        return f"run says {line!r}; inspect: {reason!r}", None
    kind = reason.removeprefix(f"{path}: ").partition(": ")[2]  # without the key
    return None, re.sub(r"-?[0-9.][-+0-9.e]*|'.*?'|nan|inf", "_", kind)[:70] if code else None


@pytest.mark.usefixtures("restored")
def test_metadata_changed_at_random(bases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of refusals by reason are printed: `pytest -s`."""
    rng, wrong, reasons, path = random.Random(SEED), [], Counter[str](), tmp_path / "m.gguf"
    for number in range(CHANGES):
        with open_gguf(rng.choice(bases)) as base:
            tensors = [OutputTensor(i.name, i.type, i.shape, lambda n=i.name: base.raw(n)) for i in base.tensors.values()]  # type: ignore[misc]
            entries = changed(base.typed_metadata, rng)
            try:
                write_gguf(path, str(entries["general.architecture"].value), entries, tensors, force=True)
            except (ValueError, OverflowError):  # the writer keeps an alignment that is none
                entries.pop("general.alignment", None)
                write_gguf(path, str(entries["general.architecture"].value), entries, tensors, force=True)
        fault, reason = disagreement(path, monkeypatch)
        if fault:
            wrong.append(f"{number}: {fault}")
        reasons[reason or "works"] += 1
    for reason, count in reasons.most_common():
        print(f"{count:4} {reason}")
    assert wrong == []
    assert reasons["works"] >= AT_LEAST


@pytest.mark.usefixtures("restored")
@pytest.mark.skipif(not CASES.is_dir(), reason="needs the inputs beside the checkout")
def test_inputs_that_peoples_files_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(CASES.glob("*.gguf"))
    assert files and {path.name: disagreement(path, monkeypatch)[0] for path in files} == dict.fromkeys(p.name for p in files)
