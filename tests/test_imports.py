"""What imports what: `bitnet --help` stays quick, and no layer imports one above it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_cli.cli import app

# Each costs 30 ms to 2.4 s to import; showing help needs none of them.
HEAVY = {
    "matplotlib",
    "numba",
    "llvmlite",
    "numpy",
    "gguf",
    "tokenizers",
    "sentencepiece",
    "huggingface_hub",
    "llguidance",
    "torch",
    "starlette",
    "uvicorn",
}

# A module may import its own layer and those below. The package itself (`from bitnet_cli import load`) stands for the whole engine, so only
# its version may be asked for from below; it is the top layer.
LAYERS = [
    {"errors", "activations", "layer_table", "__version__"},
    {"machine", "embedded", "gguf_file", "text"},
    {"ternary"},
    {"tensors"},
    {"checkpoint"},
    {"model"},
    {"api"},
    {"serving", "evaluation"},
    {"commands"},
    {"options"},
    {"cli"},
    {"start"},
    {"__init__", "__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# These know files, layouts and text, not how the numbers are computed.
WITHOUT_KERNELS = {"errors", "activations", "layer_table", "options", "cli"}
WITHOUT_KERNELS |= {"gguf_file", "ternary", "tensors", "checkpoint", "text", "embedded"}
# These compute nothing, and both packages need them.
FOR_ALL = {"bitnet_kernels.child", "bitnet_kernels.private"}


def modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules of a fresh process that ran `code`."""
    script = f"import json, sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands] + [
    group.name for group in app.registered_groups
]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    arguments = ["bitnet", *command, "--help"]
    loaded = modules_after(f"sys.argv = {arguments}; from bitnet_cli.cli import main; main()")
    assert "bitnet_cli" in loaded
    assert loaded & HEAVY == set()


def test_importing_the_package_imports_only_the_standard_library() -> None:
    added = modules_after("import bitnet_cli") - modules_after("pass")
    assert "bitnet_cli" in added
    assert added - set(sys.stdlib_module_names) == {"bitnet_cli"}


def test_kernels_are_not_importable_under_their_folder_name() -> None:
    """`kernels` is the name of another package, which transformers looks for; an installed copy of ours would be taken for it."""
    code = "import importlib.util, bitnet_kernels; sys.path[:] = [p for p in sys.path if p]; assert not importlib.util.find_spec('kernels')"
    assert "bitnet_kernels" in modules_after(code)


def targets(path: Path, tree: ast.Module) -> set[str]:
    """Dotted names of all that the file imports, anywhere in it, relative imports resolved; `from a import b` gives a.b."""
    package = list(path.with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names |= {".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names}
    return names


def test_no_layer_imports_upward(python_files: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in python_files.items():
        if path.parts[0] != "bitnet_cli":
            continue
        own = path.with_suffix("").parts[1]
        assert own in RANK, f"{path}: add {own} to LAYERS in {Path(__file__).name}"
        for target in targets(path, tree):
            parts = target.split(".")
            if parts[0] == "bitnet_kernels" and own in WITHOUT_KERNELS and ".".join(parts[:2]) not in FOR_ALL:
                wrong.append(f"{path} imports {target}")
            if parts[0] == "bitnet_cli":
                name = parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"
                if RANK[name] > RANK[own]:
                    wrong.append(f"{path} imports {target}")
    assert wrong == []


def test_kernels_know_only_arrays(python_files: dict[Path, ast.Module]) -> None:
    """Their own modules they import relatively, or as bitnet_kernels."""
    allowed = {"numba", "llvmlite", "numpy", "bitnet_kernels", *sys.stdlib_module_names}
    for path, tree in python_files.items():
        if path.parts[0] == "kernels":
            roots = {target.split(".")[0] for target in targets(path, tree)} - {"kernels"}
            assert roots - allowed == set(), path


def test_folder_names_are_not_imported(python_files: dict[Path, ast.Module]) -> None:
    """`import kernels`, `scripts` or `tests` works in a checkout and fails when installed."""
    for path, tree in python_files.items():
        if path.parts[0] in ("bitnet_cli", "kernels"):
            absolute = [
                node for node in ast.walk(tree) if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
            ]
            names = {(alias.name if isinstance(node, ast.Import) else node.module or "") for node in absolute for alias in node.names}
            assert {name.split(".")[0] for name in names} & {"kernels", "scripts", "tests"} == set(), path
