"""Folder -> table of all tensors, from model.safetensors or from the shards that model.safetensors.index.json lists.

Weights in pickle-based formats are never loaded: unpickling runs code from the file.
"""

from pathlib import Path

from bitnet_cli.checkpoint.safetensors import read_table
from bitnet_cli.checkpoint.stored import StoredTensor
from bitnet_cli.checkpoint.strict_json import MEGABYTE, read_object
from bitnet_cli.errors import BadFileError, UnsupportedError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".pkl", ".pickle", ".msgpack")
MAX_SHARDS = 1000  # each holds an open descriptor


def refuse_pickle(path: Path) -> None:
    """UnsupportedError for a file whose format could run code when it is loaded."""
    if path.suffix.lower() in PICKLED:
        raise UnsupportedError(f"{path}: pickle is never loaded, use safetensors")


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint, by name. Raises BitnetError where the folder has no safetensors weights."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or single.is_symlink():
        return read_table(single)
    if index.exists() or index.is_symlink():
        return _read_shards(folder, index)
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")
    if len(files) == 1:
        return read_table(files[0])
    if files:
        raise BadFileError(folder, "model.safetensors.index.json", f"missing, and {len(files)} safetensors files are here")
    for path in sorted(folder.iterdir()):
        refuse_pickle(path)
    raise BadFileError(folder, "weights", "missing: expected model.safetensors or model.safetensors.index.json")


def shard_names(index: Path) -> list[str]:
    """The files that an index lists, each once. BadFileError for anything but plain names of .safetensors files."""
    return list(dict.fromkeys(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, checked."""
    weight_map = read_object(index, 64 * MEGABYTE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError(index, "weight_map", "expected an object of tensor name to file name")
    for name in weight_map.values():
        if not isinstance(name, str):
            raise BadFileError(index, "weight_map", f"{str(name)[:80]!r} is not a file name")
    names = dict.fromkeys(weight_map.values())
    if len(names) > MAX_SHARDS:
        raise BadFileError(index, "weight_map", f"{len(names)} files, at most {MAX_SHARDS} are expected")
    for name in names:
        _check_name(index, name)
    return weight_map


def _read_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    tables = {name: read_table(_shard_path(folder, index, name)) for name in dict.fromkeys(weight_map.values())}
    tensors: dict[str, StoredTensor] = {}
    for name, table in tables.items():
        for key, tensor in table.items():
            if key in tensors:
                raise BadFileError(tensor.path, key, f"also in {tensors[key].path.name}")
            if weight_map.get(key, name) != name:
                raise BadFileError(index, key, f"said to be in {weight_map[key]}, found in {name}")
            tensors[key] = tensor
    if absent := [key for key in weight_map if key not in tensors]:
        raise BadFileError(index, "weight_map", f"{', '.join(absent[:5])}: not in {weight_map[absent[0]]}")
    return tensors


def _check_name(index: Path, name: str) -> None:
    if not name or len(name) > 255 or not name.isprintable() or name != Path(name).name or "\\" in name:
        raise BadFileError(index, "weight_map", f"{name[:80]!r} is not a plain file name")
    if not name.endswith(".safetensors"):
        refuse_pickle(index.parent / name)
        raise BadFileError(index, "weight_map", f"{name!r} is not a .safetensors file")


def _shard_path(folder: Path, index: Path, name: str) -> Path:
    """A shard lies inside the folder. In the Hugging Face cache it is a link into `blobs` of the same repository."""
    path, home = folder / name, folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        raise BadFileError(index, "weight_map", f"shard {name} is missing") from None
    except (OSError, RuntimeError):  # a loop of links: RuntimeError up to Python 3.12
        raise BadFileError(index, "weight_map", f"shard {name} is a loop of links") from None
    if target.parent not in allowed:
        raise BadFileError(index, "weight_map", f"shard {name} is a link to outside the folder")
    return path
