"""`bitnet convert` when it is stopped, meets limits, or gets a model larger than memory should be (faults 40, 42, 43)."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits and permissions of POSIX")


def big_folder(models: ModuleType, folder: Path) -> Path:
    """4 MB of output: long enough to be stopped in the middle of."""
    shape = models.Shape(hidden=512, feed_forward=1408, layers=4, heads=8, kv_heads=2, vocab_size=2048)
    result: Path = models.write_folder(folder, "C_packed", shape)
    return result


def stopped(arguments: Sequence[str | Path], seconds: float, with_signal: int) -> int:
    """Exit status of a conversion that gets a signal after some time, or ends before."""
    command = [sys.executable, "-m", "bitnet_cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(with_signal)
    return process.wait()


@posix
@pytest.mark.slow
def test_kill_at_random_moments(bitnet: Callable[..., Any], models: ModuleType, tmp_path: Path) -> None:
    """Each time the target is absent, the old file, or the new one; and the next run cleans up."""
    folder, base = big_folder(models, tmp_path / "model"), tmp_path / "out"
    base.mkdir()
    out = base / "out.gguf"
    start = time.perf_counter()
    bitnet("convert", folder, "-o", out, check=True, process=True)
    seconds, new = time.perf_counter() - start, out.read_bytes()
    rng = random.Random(0)
    killed = 0
    for i in range(40):
        if killed == 6:
            break
        old = b"old file" if i % 2 else None
        out.unlink(missing_ok=True)
        if old:
            out.write_bytes(old)
        # Most of the time goes into starting Python; the writing is at the end.
        status = stopped(["convert", folder, "-o", out, "--force"], seconds * rng.uniform(0.4, 1.1), signal.SIGKILL)
        killed += status == -signal.SIGKILL
        seconds *= 1.0 if status == -signal.SIGKILL else 0.9  # whole: the first run may have had to wait for other work
        found = out.read_bytes() if out.exists() else None
        assert found in (old, new)
        assert all(path == out or path.name.endswith(".part") for path in base.iterdir())
    assert killed >= 2
    bitnet("convert", folder, "-o", out, "--force", check=True)
    assert list(base.iterdir()) == [out] and out.read_bytes() == new


WHILE_WRITING = """
import os, signal, sys
from bitnet_cli.checkpoint import packing
from bitnet_cli.cli import main
encode, count = packing.encode, 0
def encode_then_stop(*arguments):
    global count
    count += 1
    if count == 9:
        os.kill(os.getpid(), signal.{signal})
    return encode(*arguments)
packing.encode = encode_then_stop
main()
"""


@posix
@pytest.mark.parametrize(("name", "status", "left"), [("SIGKILL", -9, 2), ("SIGINT", 130, 1), ("SIGTERM", 143, 1)])
def test_stopped_in_the_middle_of_writing(folders: dict[str, Path], tmp_path: Path, name: str, status: int, left: int) -> None:
    """In the ninth of fourteen projections, for certain. Ctrl-C and SIGTERM also take the part file away."""
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    code = WHILE_WRITING.format(signal=name)
    command = [sys.executable, "-c", code, "convert", str(folders["C"]), "-o", str(out), "--force"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert out.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == left
    convert(folders["C"], out, force=True, quiet=True)
    assert out.read_bytes()[:4] == b"GGUF" and list(tmp_path.iterdir()) == [out]


@posix
@pytest.mark.parametrize("limit", [0, 1000, 200_000, 520_000])
def test_disk_full(bitnet: Callable[..., Any], refused: Callable[..., None], folders: dict[str, Path], tmp_path: Path, limit: int) -> None:
    """A limit on file sizes fails writes just as a full disk does: at once, in the header, and in the weights."""
    import resource

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out.gguf"
    done = bitnet("convert", folders["C"], "-o", out, preexec_fn=small_files)
    refused(done, 1, "out.gguf", "the disk is full", "the file needs 528288 bytes")
    assert list(tmp_path.iterdir()) == []


AS_NOBODY = """
import os, sys
from pathlib import Path
from bitnet_cli.commands.convert import convert
from bitnet_cli.errors import BitnetError
source, warm, target = map(Path, sys.argv[1:])
convert(source, warm, quiet=True)  # imports everything, while it may
if os.geteuid() == 0:  # root may write anywhere
    os.setegid(65534)
    os.seteuid(65534)
try:
    convert(source, target, quiet=True)
except BitnetError as error:
    print(type(error).__name__, error)
"""


@posix
def test_read_only_folder(models: ModuleType, tmp_path: Path) -> None:
    base = tempfile.mkdtemp()  # not in tmp_path: pytest's folders are closed to other users
    try:
        source, target = models.write_folder(Path(base, "model"), "C_packed"), Path(base, "target")
        target.mkdir()
        Path(base).chmod(0o755)
        target.chmod(0o555)
        arguments = [source, tmp_path / "warm.gguf", target / "out.gguf"]
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, *map(str, arguments)], check=True, capture_output=True, text=True)
        assert done.stdout == f"BitnetError {target / 'out.gguf'}: cannot be written: Permission denied\n" and done.stderr == ""
        assert list(target.iterdir()) == []
    finally:
        Path(base, "target").chmod(0o755)
        shutil.rmtree(base)


PEAK = """
import sys
from pathlib import Path
from bitnet_cli.commands.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), embedding_type=sys.argv[3], quiet=True)
# VmHWM is this process's own; ru_maxrss on Linux begins with that of the process it was forked from.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("flavour", "embedding_type"), [("A_online", "f16"), ("C_packed", "q8_0")])
def test_peak_memory(models: ModuleType, tmp_path: Path, flavour: str, embedding_type: str) -> None:
    """Budget: twice the largest tensor and 300 MB. A model of 840 MB (A) whose tensors are 210 MB each.

    The weights are a sparse file of zeros, which takes neither disk nor time to make and reads as any other.
    """
    shape = models.Shape(hidden=2560, feed_forward=40960, layers=1, heads=20, kv_heads=5, vocab_size=40960)
    folder = models.write_folder(tmp_path / "model", flavour, models.Shape(layers=1))
    (folder / "config.json").write_text(json.dumps(models.config_of(flavour, shape)))
    largest = sparse_weights(folder / "model.safetensors", flavour, shape)
    assert largest == 2 * 40960 * 2560
    command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "out.gguf"), embedding_type]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout) * 1024
    (tmp_path / "out.gguf").unlink()  # 290 MB
    print(f"peak {peak / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
    assert peak <= 2 * largest + 300_000_000


def sparse_weights(path: Path, flavour: str, shape: Any) -> int:
    """A file of zeros with the tensors of a model (codes: all -1); returns the bytes of the largest."""
    h, f, kv = shape.hidden, shape.feed_forward, shape.hidden // shape.heads * shape.kv_heads
    sizes = {"self_attn.q": (h, h), "self_attn.k": (kv, h), "self_attn.v": (kv, h), "self_attn.o": (h, h)}
    sizes |= {"mlp.gate": (f, h), "mlp.up": (f, h), "mlp.down": (h, f)}
    norms = {"input_layernorm": h, "post_attention_layernorm": h, "self_attn.attn_sub_norm": h, "mlp.ffn_sub_norm": f}
    entries: dict[str, tuple[str, list[int], int]] = {}
    if flavour == "C_packed":  # first, because the file ends in zeros and the scales must be ones
        entries |= {f"model.layers.0.{name}_proj.weight_scale": ("F32", [1], 4) for name in sizes}
    entries["model.embed_tokens.weight"] = ("BF16", [shape.vocab_size, h], 2 * shape.vocab_size * h)
    for name, (rows, cols) in sizes.items():
        packed = flavour == "C_packed"
        stored = ("U8", [rows // 4, cols], rows // 4 * cols) if packed else ("BF16", [rows, cols], 2 * rows * cols)
        entries[f"model.layers.0.{name}_proj.weight"] = stored
    entries |= {f"model.layers.0.{name}.weight": ("F32", [size], 4 * size) for name, size in norms.items()}
    entries["model.norm.weight"] = ("F32", [h], 4 * h)
    header, end = {}, 0
    for name, (dtype, dims, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(np.ones(7 if flavour == "C_packed" else 0, "<f4").tobytes())
        file.truncate(8 + len(text) + end)
    return max(size for _, _, size in entries.values())
