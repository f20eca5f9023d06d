"""What we write runs in llama.cpp: our exports of a SiLU model (architecture `bitnet`), in llama-cpp-python, against the formulas and our
own decoder.

llama.cpp rounds the input of a ternary matrix to int8 like BitNet, but with one scale for 256 neighbours (TQ1_0, TQ2_0; Q8_K in
ggml-quants.c) or for 32, kept in float16 (Q2_0; Q8_0) instead of one for the token. So there are two comparisons.

With the formulas at these scales, everything else is exact, and the logits agree to 1e-5 as ours do with theirs (reference.py explains
the exception: a value so near a half that float32 rounds it the other way).

With our decoder they differ by the rounding of activations. Rounding to steps of max|x| / 127 adds an error that is uniform within a step,
of relative size e = (max / rms) / (127 * sqrt(12)). A token's largest of 768 values is at most 8 times their rms in these models (about
3.4 were they normal; products of gate and up have longer tails): e <= 1.8 %. Ours and theirs are independent, so the results of one matrix
differ by at most sqrt(2) e = 2.6 %. Every matrix adds to the residual stream or to what makes an addend of it, so the 7 L of them
change the logits by at most sqrt(7 L) * 2.6 % of their rms if no error cancels: 9.6 % for 2 layers. Seen: 1.2 to 2.8 %.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.model.perplexity import score, score_like_llama_cpp
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.ternary import tq2_0

from .builder import Model, Sizes, f32, random_model, write_model
from .reference import Q8_0, Q8_K, Activations, assert_agree, forward

needs_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
pytestmark = needs_llama_cpp

SIZES = Sizes(hidden=256, feed_forward=768, heads=4, kv_heads=2, head_dim=64)
IDS = [256, *b"The quick brown fox jumps"]
BOUND = np.sqrt(7 * SIZES.layers) * np.sqrt(2) * 8 / (127 * np.sqrt(12))
KINDS = {"tq1_0": Q8_K, "tq2_0": Q8_K, "q2_0": Q8_0}


def by_llama_cpp(path: Path, ids: list[int]) -> NDArray[np.float32]:
    """Logits of every token, (tokens, vocab)."""
    out = path.with_suffix(".npy")
    script = Path(__file__).with_name("llama_cpp_logits.py")
    done = subprocess.run([sys.executable, str(script), str(path), str(out), *map(str, ids)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits: NDArray[np.float32] = np.load(out)
    return logits


@pytest.fixture(scope="module")
def model() -> Model:
    """Float32 embedding and head, which llama.cpp multiplies in float32. The seed is one whose values keep away from halves."""
    return random_model(SIZES, seed=2, activation="silu", embedding=TensorType.F32)


@pytest.fixture(scope="module")
def exports(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    source = write_model(folder / "i2_s.gguf", model, arch="bitnet")
    for kind in KINDS:
        quantize(source, folder / f"{kind}.gguf", kind, quiet=True)
    return {kind: folder / f"{kind}.gguf" for kind in ("i2_s", *KINDS)}


def relative_rms(got: NDArray[Any], want: NDArray[Any]) -> float:
    difference = got.astype(np.float64) - want
    return float(np.sqrt((difference**2).mean() / (want.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_formulas(kind: str, model: Model, exports: dict[str, Path]) -> None:
    result = forward(model, IDS, KINDS[kind])
    got = by_llama_cpp(exports[kind], IDS)
    assert assert_agree(got, result.logits, result.margin) >= len(IDS) // 2
    # The comparison sees which scales are used: with those of the token it would fail.
    other = forward(model, IDS, Activations())
    with pytest.raises(AssertionError):
        assert_agree(got, other.logits, other.margin)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_differ_from_ours_by_rounding_only(kind: str, exports: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    ours = text_of(exports["i2_s"]).feed_all(IDS)
    assert np.array_equal(ours, text_of(exports[kind]).feed_all(IDS))  # the same integers here, whatever the layout
    assert 1e-4 < relative_rms(by_llama_cpp(exports[kind], IDS), ours) < BOUND


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
def test_greedy_tokens(kind: str, exports: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    """llama.cpp reads the text that we write; it would have written the same token wherever ours leads by 6 times the rms difference."""
    decoder = text_of(exports[kind])
    ids = [256, *b"The"]
    logits = decoder.feed(ids).copy()
    leads = []
    while len(ids) < 52:
        second, first = np.sort(logits)[-2:]
        leads.append((first - second) / np.sqrt((logits.astype(np.float64) ** 2).mean()))
        ids.append(int(logits.argmax()))
        logits = decoder.feed(ids[-1:]).copy()
    theirs = by_llama_cpp(exports[kind], ids).argmax(1)[3:-1]
    clear = np.array(leads) > 6 * 0.03
    same = theirs == ids[4:]
    assert clear.sum() > len(clear) / 2 and same[clear].all()
    assert same.mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_folder(kind: str, models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """From a Hugging Face folder with a byte-level BPE; one projection has rows of 640, so tq1_0 and tq2_0 hold a Q2_0 tensor.

    The embedding is float16. llama.cpp multiplies it with states rounded to float16: 2^-11 more, which the bound swallows.
    """
    folder = models.write_folder(tmp_path / "model", "C_packed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "silu"}))
    convert(folder, tmp_path / "m.gguf", outtype=kind, quiet=True)
    ids = np.random.default_rng(0).integers(3, 282, 24).tolist()
    ours = text_of(tmp_path / "m.gguf").feed_all(ids)
    assert relative_rms(by_llama_cpp(tmp_path / "m.gguf", ids), ours) < BOUND


@pytest.mark.parametrize("arch", ["bitnet", "llama"])
def test_llama_cpp_applies_scale_tensors(arch: str, tmp_path: Path) -> None:
    """A power of two in the blocks, or 1 in the blocks and the power in `.scale`: the same logits to the last bit. Without it: others."""
    model = random_model(SIZES, seed=3, activation="silu", embedding=TensorType.F32)
    norms = {} if arch == "bitnet" else {f"blk.{n}.{name}_sub_norm.weight": None for n in range(2) for name in ("attn", "ffn")}

    def write(name: str, in_blocks: float, of_its_own: float | None) -> Path:
        tensors: dict[str, Any] = dict(norms)
        for projection, values in model.ternary.items():
            blocks = tq2_0.pack_rows(values).reshape(-1, 66).copy()
            blocks[:, 64:] = np.array([in_blocks], "<f2").view(np.uint8)
            weight = f"{projection}.weight"
            tensors[weight] = OutputTensor(weight, TensorType.TQ2_0, values.shape, lambda blocks=blocks: blocks)  # type: ignore[misc]
            if of_its_own is not None:
                tensors[f"{projection}.scale"] = f32(f"{projection}.scale", [of_its_own])
        return write_model(tmp_path / name, model, arch=arch, tensors=tensors)

    blocks = by_llama_cpp(write("blocks.gguf", 2**-4, None), IDS)
    assert np.array_equal(by_llama_cpp(write("own.gguf", 1, 2**-4), IDS), blocks)
    assert relative_rms(by_llama_cpp(write("none.gguf", 1, None), IDS), blocks) > 3 * BOUND


def test_perplexity_as_llama_perplexity(exports: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    """`--like llama.cpp`, from llama.cpp's own logits: windows of 32 that begin with the begin token, of which the second halves count.

    Ours differ by the rounding of activations, less than 1 % of a nat here; without the begin token, or with every token, by more.
    """
    ids, scheduler = [int(i) for i in np.random.default_rng(8).integers(0, 256, 5 * 32 + 7)], Scheduler(text_of(exports["tq2_0"]).engine)
    theirs: list[float] = []
    for begin in range(0, 5 * 32, 32):
        window = [256, *ids[begin + 1 : begin + 32]]
        logits = by_llama_cpp(exports["tq2_0"], window).astype(np.float64)
        every = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[range(32), [*window[1:], 0]]
        theirs += every[16:31].tolist()
    ours = score_like_llama_cpp(scheduler, ids, 32, 256)
    assert (ours.tokens, len(theirs)) == (75, 75)
    assert ours.nats == pytest.approx(np.mean(theirs), abs=0.01)
    assert ours.nats_error == pytest.approx(np.std(theirs, ddof=1) / np.sqrt(75), abs=0.01)
    for other in (score_like_llama_cpp(scheduler, ids, 32, None), score(scheduler, ids, 32, 32)):
        assert abs(other.nats - np.mean(theirs)) > 0.01
