"""`bitnet convert owner/name`: what is fetched from a hub, what stays in the cache, and how refusals read."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .hub_server import COMMIT, Hub, Repo, serve

NAME = "tester/tiny-bitnet"
GIB = 1 << 30


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def model_files(folders: dict[str, Path]) -> dict[str, bytes]:
    """A packed model as published: the files of a conversion, and others that it must not touch."""
    files = {path.name: path.read_bytes() for path in sorted(folders["C"].iterdir())}
    unwanted = ("README.md", "pytorch_model.bin", "modeling_bitnet.py", "optimizer.pt", "onnx/model.onnx", "original/model.safetensors")
    return files | dict.fromkeys(unwanted, b"unwanted")


@pytest.fixture
def convert(bitnet: Callable[..., Any], hub: Hub, tmp_path: Path) -> Callable[..., Any]:
    """convert(NAME, ...): in tmp_path, which has a folder models/, with a cache of its own; `environment` on top of the fake hub's."""
    (tmp_path / "models").mkdir()

    def run(*arguments: str | Path, environment: dict[str, str] | None = None, **options: Any) -> Any:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        env = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONWARNINGS": "error"} | (environment or {})
        return bitnet("convert", *arguments, cwd=tmp_path, env=env, **options)

    return run


def cut_index(files: dict[str, bytes], models: Any) -> dict[str, bytes]:
    """The same model in three shards."""
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    names = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(tensors)}
    sharded = {name: data for name, data in files.items() if name != "model.safetensors"}
    return sharded | {"model.safetensors.index.json": json.dumps({"weight_map": names}).encode()}


def test_fetches_what_it_needs_and_converts_like_the_folder(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], folders: dict[str, Path], tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(model_files)
    done = convert(NAME)
    assert done.returncode == 0, done.stderr
    assert set(hub.fetched()) == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert hub.fetched()[0] == "config.json" and hub.fetched()[-1] == "model.safetensors"
    assert "downloading 4 files" in done.stderr and COMMIT in done.stderr and "\x1b" not in done.stderr and "\r" not in done.stderr
    # By name, where nobody said: and the same file as from a folder of that name.
    twin = tmp_path / "tiny-bitnet"
    twin.symlink_to(folders["C"])
    (tmp_path / "copy").mkdir()
    local = tmp_path / "copy" / "tiny-bitnet"
    local.mkdir()
    for path in folders["C"].iterdir():
        (local / path.name).write_bytes(path.read_bytes())
    assert convert(local, "-o", "local.gguf").returncode == 0
    assert (tmp_path / "models" / "tiny-bitnet.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


@pytest.mark.slow
def test_second_time_and_offline_come_from_the_cache(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], refused: Callable[..., None], tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(model_files)
    refused(convert(NAME, "--offline"), 1, NAME, "cache", "offline")
    refused(convert(NAME, environment={"HF_HUB_OFFLINE": "1"}), 1, NAME, "cache", "offline")
    assert hub.requests == []
    assert convert(NAME, "-o", "1.gguf").returncode == 0
    fetched = len(hub.fetched())
    done = convert(NAME, "-o", "2.gguf")
    assert done.returncode == 0 and "downloading" not in done.stderr and len(hub.fetched()) == fetched
    hub.requests.clear()
    assert convert(NAME, "-o", "3.gguf", "--offline").returncode == 0
    assert convert(NAME, "-o", "4.gguf", environment={"HF_HUB_OFFLINE": "1"}).returncode == 0
    assert convert(NAME, "-o", "5.gguf", "--offline", "--revision", COMMIT).returncode == 0
    assert hub.requests == []
    refused(convert(NAME, "-o", "6.gguf", "--offline", "--revision", "other"), 1, "revision other")
    assert len({path.read_bytes() for path in tmp_path.glob("?.gguf")}) == 1


def test_cache_dir(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(model_files)
    assert convert(NAME, "--cache-dir", tmp_path / "elsewhere").returncode == 0
    assert (tmp_path / "elsewhere" / "models--tester--tiny-bitnet").is_dir() and not (tmp_path / "hf" / "hub").exists()


def test_shards(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], models: Any, tmp_path: Path) -> None:
    files = cut_index(model_files, models)
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    weight_map = json.loads(files["model.safetensors.index.json"])["weight_map"]
    for shard in set(weight_map.values()):
        models.write_safetensors(tmp_path / "shard", {k: v for k, v in tensors.items() if weight_map[k] == shard})
        files[shard] = (tmp_path / "shard").read_bytes()
    hub.repos[NAME] = Repo(files | {"consolidated.safetensors": b"unwanted"})
    assert convert(NAME, "-o", "a.gguf").returncode == 0
    assert sorted(name for name in hub.fetched() if name.endswith(".safetensors")) == sorted(set(weight_map.values()))
    # A cache with a shard missing is not complete, and says so before anything is read.
    snapshot = next((tmp_path / "hf" / "hub").glob("models--*/snapshots/*"))
    (snapshot / min(weight_map.values())).unlink()
    done = convert(NAME, "-o", "b.gguf", "--offline")
    assert done.returncode == 1 and "not completely" in done.stderr
    assert convert(NAME, "-o", "b.gguf").returncode == 0


def test_dropped_connection_goes_on_where_it_broke(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], models: Any, tmp_path: Path
) -> None:
    """huggingface_hub writes 10 MB at a time, so the file is made larger than that, by a buffer that a conversion leaves out."""
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", np.arange(4 << 20, dtype=np.float32))
    models.write_safetensors(tmp_path / "large", tensors)
    large = (tmp_path / "large").read_bytes()
    hub.repos[NAME] = Repo(model_files | {"model.safetensors": large}, cut={"model.safetensors": [12 << 20]})
    done = convert(NAME, "-o", "a.gguf")
    assert done.returncode == 0, done.stderr
    first, second = (r for method, path, r in hub.requests if method == "GET" and path.endswith("model.safetensors"))
    assert first is None and second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 12 << 20
    assert next((tmp_path / "hf").rglob("model.safetensors")).read_bytes() == large


@pytest.mark.slow
def test_a_second_run_fetches_only_what_the_first_did_not_finish(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], refused: Callable[..., None]
) -> None:
    hub.repos[NAME] = Repo(model_files, cut={"model.safetensors": [1000] + [0] * 19})
    done = convert(NAME, "-o", "a.gguf", timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 2, done.stderr  # what is downloaded, and the error
    assert "Traceback" not in done.stderr and hub.url in done.stderr and "run the command again" in done.stderr
    hub.repos[NAME].cut, before = {}, len(hub.fetched())
    assert convert(NAME, "-o", "a.gguf").returncode == 0
    assert hub.fetched()[before:] == ["model.safetensors"]


def test_refusals_of_the_hub(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], refused: Callable[..., None], tmp_path: Path
) -> None:
    refused(convert(NAME), 2, NAME, "no such repository", "HF_TOKEN")
    hub.repos[NAME] = Repo(model_files)
    refused(convert(NAME, "--revision", "nope"), 2, NAME, "no revision 'nope'")
    hub.repos[NAME] = Repo(model_files, token="hf_right")
    refused(convert(NAME, "--token", "hf_wrong"), 2, "no such repository")
    hub.repos[NAME] = Repo(model_files, refuse_files=(403, "GatedRepo"))
    done = convert(NAME, "-q", "--token", "hf_secret")
    refused(done, 1, "gated", f"{hub.url}/{NAME}")
    assert "hf_secret" not in done.stderr
    hub.repos[NAME] = Repo(model_files, refuse_files=(401, "GatedRepo"))
    refused(convert(NAME, "-q"), 1, "gated", "HF_TOKEN")
    hub.status = 403
    refused(convert(NAME), 1, "refused access (403)")
    assert not any((tmp_path / "models").iterdir())


def test_token_reaches_the_hub(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], refused: Callable[..., None]) -> None:
    hub.repos[NAME] = Repo(model_files, token="hf_right")
    assert convert(NAME, "-o", "a.gguf", "--token", "hf_right").returncode == 0
    assert convert(NAME, "-o", "b.gguf", environment={"HF_TOKEN": "hf_right"}).returncode == 0
    done = convert(NAME, "--token", "hf_ri\nght")
    refused(done, 2, "--token")
    assert "hf_ri" not in done.stderr


def test_no_network(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], refused: Callable[..., None], tmp_path: Path
) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    refused(convert(NAME, environment=nowhere), 1, NAME, "http://127.0.0.1:9", "cannot be reached", "no such folder")
    hub.repos[NAME] = Repo(model_files)
    assert convert(NAME, "-o", "a.gguf").returncode == 0
    done = convert(NAME, "-o", "b.gguf", environment=nowhere)  # but what is in the cache is good enough
    assert done.returncode == 0 and "using the files in the cache" in done.stderr


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"pytorch_model.bin": b"\x80", "config.json": b"{}"}, 4, ("pickle is never loaded", "safetensors")),
        (
            {"ggml-model-f16.gguf": b"", "ggml-model-i2_s.gguf": b"", "README.md": b""},
            2,
            (f"`bitnet pull {NAME}` gets one",),
        ),
        ({"x $(date)\x1b.gguf": b""}, 2, (f"`bitnet pull {NAME}`",)),
        ({"README.md": b""}, 2, ("no safetensors weights",)),
        ({"model.safetensors": b"x"}, 3, ("config.json", "missing")),
        ({"config.json": b"{}", "a.safetensors": b"", "b.safetensors": b""}, 3, ("model.safetensors.index.json",)),
    ],
)
def test_repositories_that_do_not_convert(
    convert: Callable[..., Any], hub: Hub, refused: Callable[..., None], files: dict[str, bytes], code: int, words: tuple[str, ...]
) -> None:
    hub.repos[NAME] = Repo(files)
    refused(convert(NAME), code, NAME, *words)
    assert hub.fetched() == []


@pytest.mark.parametrize("shard", ["../../evil.safetensors", "/etc/passwd", "pytorch_model.bin", "absent.safetensors"])
def test_index_with_a_shard_that_is_no_shard(
    convert: Callable[..., Any], hub: Hub, refused: Callable[..., None], model_files: dict[str, bytes], shard: str
) -> None:
    files = {name: data for name, data in model_files.items() if name != "model.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"model.norm.weight": shard}}).encode()
    hub.repos[NAME] = Repo(files)
    refused(convert(NAME), 4 if shard.endswith(".bin") else 3, "model.safetensors.index.json" if not shard.endswith(".bin") else "pickle")
    assert hub.fetched() == ["model.safetensors.index.json"]


def test_unsupported_models_are_refused_before_the_weights_are_fetched(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes]
) -> None:
    config = json.loads(model_files["config.json"]) | {"architectures": ["EvilForCausalLM"], "auto_map": {"AutoModel": "modeling.Evil"}}
    hub.repos[NAME] = Repo(model_files | {"config.json": json.dumps(config).encode()})
    done = convert(NAME, "-q")
    assert done.returncode == 4 and "EvilForCausalLM" in done.stderr and "never run" in done.stderr
    assert hub.fetched() == ["config.json"]


def test_disk_too_small(convert: Callable[..., Any], hub: Hub, refused: Callable[..., None], model_files: dict[str, bytes]) -> None:
    hub.repos[NAME] = Repo(model_files, sizes={"model.safetensors": 1 << 62})
    refused(convert(NAME, "-q"), 1, NAME, "free", str(1 << 62)[:4])
    assert hub.fetched() == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_disk_full_while_downloading(
    convert: Callable[..., Any], hub: Hub, refused: Callable[..., None], model_files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(model_files)
    import resource

    limit = len(model_files["model.safetensors"]) // 2
    done = convert(NAME, "-q", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    refused(done, 1, NAME, "disk", "full", "--cache-dir")
    assert not any((tmp_path / "models").iterdir())


def test_names(convert: Callable[..., Any], hub: Hub, refused: Callable[..., None], folders: dict[str, Path], tmp_path: Path) -> None:
    """A path is a path wherever it is one; a name with one slash that is nowhere on the disk is a hub's."""
    for path in ("./a/b", "a/b/c", "/nowhere/at/all", "nowhere", "../a/b"):
        refused(convert(path, "-o", "x.gguf"), 2, "no such folder")
    refused(convert(folders["C"], "-o", "x.gguf", "--revision", "main"), 2, "--revision")
    assert hub.requests == []
    (tmp_path / "tester").mkdir()
    (tmp_path / "tester" / "tiny-bitnet").symlink_to(folders["C"])
    assert convert(NAME, "-o", "x.gguf").returncode == 0
    assert hub.requests == []


def test_dry_run_says_what_would_be_downloaded(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(model_files)
    done = convert(NAME, "--dry-run")
    assert done.returncode == 0 and done.stderr == ""
    assert "model.safetensors" in done.stdout and COMMIT in done.stdout and "BitNetForCausalLM" in done.stdout
    assert hub.fetched() == ["config.json"]
    plan = json.loads(convert(NAME, "--dry-run", "--json").stdout)
    assert plan["download"]["bytes"] == sum(len(model_files[f["name"]]) for f in plan["download"]["files"] if not f["cached"])
    assert [f["name"] for f in plan["download"]["files"] if f["cached"]] == ["config.json"]
    assert convert(NAME).returncode == 0
    before = len(hub.fetched())
    plan = json.loads(convert(NAME, "--dry-run", "--json").stdout)
    assert plan["size"] == (tmp_path / "models" / "tiny-bitnet.gguf").stat().st_size and len(hub.fetched()) == before
