"""Files that llama.cpp's own converter and quantiser make of a 1bitLLM folder run here, with the logits of our conversion of the folder.

Needs llama-cpp-python and its unpacked source distribution, which has the converter: LLAMA_CPP_SOURCES names its folder vendor/llama.cpp.

Their file differs from ours in the scales of weights only: float16 in every block, ours float32. So each matrix is off by one factor
1 + d, |d| <= 2^-11. That moves some activations over a half in the rounding to int8 that follows: an input off by 2^-11 of its size, with
steps of max|x| / 127, moves a share of 2^-11 * 127 / r of them by one step, r = max / rms, which is a relative error of
sqrt(2^-11 * r / 127) or less: 0.55 % for r = 8 (test_llama_cpp.py says why 8). The 7 L matrices together: sqrt(7 L) (2^-11 + 0.55 %),
2.3 % of the logits' rms for 2 layers.
"""

import ctypes
import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import sentencepiece

from bitnet_cli.commands.convert import convert
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.sequence import Sequence

from .test_llama_cpp import relative_rms

SOURCES = os.environ.get("LLAMA_CPP_SOURCES", "")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(find_spec("llama_cpp") is None or not SOURCES, reason="needs llama-cpp-python and LLAMA_CPP_SOURCES"),
]
LAYERS = 2
BOUND = np.sqrt(7 * LAYERS) * (2**-11 + np.sqrt(2**-11 * 8 / 127))
TEXT = ["The quick brown fox jumps over the lazy dog, and the dog does not mind at all.", "Once upon a time there was a king."]


@pytest.fixture(scope="module")
def folder(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths that 256 divides, masters whose mean is no power of two, and the SentencePiece model that the converter asks for."""
    shape = models.Shape(hidden=256, feed_forward=768, heads=4, kv_heads=4, layers=LAYERS, rope_theta=10000.0)
    folder: Path = models.write_folder(tmp_path_factory.mktemp("1bitllm") / "model", "E_master", shape, exact=False, kind="1bitllm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model, kept = io.BytesIO(), {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}  # as in Llama's own
    sizes = {"vocab_size": 300, "hard_vocab_limit": False, "byte_fallback": True, "model_type": "bpe"}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=model, **kept, **sizes)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def converted_by_llama_cpp(folder: Path, kind: str) -> Path:
    out = folder.with_name(f"theirs-{kind}.gguf")
    script, package = Path(SOURCES) / "convert_hf_to_gguf.py", Path(SOURCES) / "gguf-py"
    command = [sys.executable, str(script), str(folder), "--outtype", kind, "--outfile", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(package)})
    assert done.returncode == 0, done.stderr
    return out


def quantised_by_llama_cpp(source: Path, keep: bool) -> Path:
    """TQ2_0. keep: the embedding and head stay float16; else they are what llama.cpp takes for them."""
    import llama_cpp

    out = source.with_name(f"quantised-{keep}.gguf")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_TQ2_0
    if keep:
        options.token_embedding_type = options.output_tensor_type = llama_cpp.GGML_TYPE_F16
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(options)) == 0
    return out


def test_their_files_run_with_our_logits(folder: Path, text_of: Callable[..., Sequence]) -> None:
    ids = np.random.default_rng(0).integers(3, 290, 24).tolist()
    convert(folder, folder.with_name("ours.gguf"), quiet=True)
    ours = text_of(folder.with_name("ours.gguf")).feed_all(ids)
    floats = converted_by_llama_cpp(folder, "f16")
    for path in (converted_by_llama_cpp(folder, "tq2_0"), quantised_by_llama_cpp(floats, keep=True)):
        with open_gguf(path) as file:
            assert file.metadata["bitnet.rope.scaling.type"] == "linear" and file.tensors["blk.0.attn_q.weight"].type.name == "TQ2_0"
        error = relative_rms(text_of(path).feed_all(ids), ours)
        print(f"{path.name}: {error:.2e} of the logits' rms, bound {BOUND:.2e}")
        assert 0 < error < BOUND


def test_the_types_that_they_choose_run_too(folder: Path, text_of: Callable[..., Sequence]) -> None:
    path = quantised_by_llama_cpp(converted_by_llama_cpp(folder, "f16"), keep=False)
    with open_gguf(path) as file:
        print({name: file.tensors[name].type.name for name in ("token_embd.weight", "output.weight") if name in file.tensors})
    assert np.isfinite(text_of(path).feed([5, 6, 7])).all()
