"""Limits that keep the project readable, and words that must not appear. CONTRIBUTING.md gives the reasons."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

PACKAGES = ("bitnet_cli", "kernels")
MAX_LINES = {"bitnet_cli": 28_850, "kernels": 10_747, "scripts": 5_120}  # of Python in all: what is new takes the place of something
FORBIDDEN = ("pickle.load", "torch.load", "allow_pickle=True", "trust_remote_code")

# Folders of somebody's machine: the homes of users, and roots that containers and CI machines use for checkouts.
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(?:work|root|home|Users|workspace)/\w")

READ_LIKE_ATTRIBUTES = {"property", "cached_property", "callback", "setter", "overload"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _names_of_decorators(function: Function) -> set[str]:
    return {ast.unparse(item).split("(")[0].rpartition(".")[2] for item in function.decorator_list}


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Functions and methods that a reader outside the file may call: no leading underscore, in no private class, in no function.

    Properties read as attributes, and a Typer callback holds only options: neither needs a text of its own.
    """
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, Function) and not node.name.startswith("_") and not _names_of_decorators(node) & READ_LIKE_ATTRIBUTES:
            yield node


def test_files_are_short(repo_root: Path, python_files: dict[Path, ast.Module]) -> None:
    lines = {path: len((repo_root / path).read_text(encoding="utf-8").splitlines()) for path in python_files}
    assert {str(path): count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_the_house_does_not_grow(repo_root: Path, python_files: dict[Path, ast.Module]) -> None:
    lines = dict.fromkeys(MAX_LINES, 0)
    for path in python_files:
        if path.parts[0] in lines:
            lines[path.parts[0]] += len((repo_root / path).read_text(encoding="utf-8").splitlines())
    print(lines)
    assert {folder: count for folder, count in lines.items() if count > MAX_LINES[folder]} == {}


def test_functions_are_short(python_files: dict[Path, ast.Module]) -> None:
    long = []
    for path, tree in python_files.items():
        for function in functions(tree):
            count = (function.end_lineno or function.lineno) - function.lineno + 1
            if count > MAX_FUNCTION_LINES:
                long.append(f"{path}:{function.lineno}: {function.name}: {count} lines")
    assert long == []


def test_modules_say_what_they_are(python_files: dict[Path, ast.Module]) -> None:
    code = {path: tree for path, tree in python_files.items() if path.parts[0] in (*PACKAGES, "scripts")}
    assert [str(path) for path, tree in code.items() if not ast.get_docstring(tree)] == []


def test_public_functions_have_docstrings(python_files: dict[Path, ast.Module]) -> None:
    bare = []
    for path, tree in python_files.items():
        if path.parts[0] in PACKAGES:
            bare += [f"{path}:{node.lineno}: {node.name}" for node in public_functions(tree.body) if not ast.get_docstring(node)]
    assert bare == []


def test_no_code_runs_from_files(repo_root: Path, python_files: dict[Path, ast.Module]) -> None:
    """A checkpoint is data: nothing that could execute what lies in one is used, or even named."""
    found = []
    for path in python_files:
        if path.parts[0] == "bitnet_cli":
            text = (repo_root / path).read_text(encoding="utf-8")
            found += [f"{path}: {word}" for word in FORBIDDEN if word in text]
    assert found == []


def test_no_path_of_one_machine(repo_root: Path, project_files: tuple[Path, ...]) -> None:
    found = []
    for path in project_files:
        data = (repo_root / path).read_bytes()
        if b"\0" in data[:4096]:
            continue  # a binary file
        for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    assert found == []


def test_only_kernels_leave_types_to_numba(python_files: dict[Path, ast.Module]) -> None:
    """A function of kernels/ that has no types is one that Numba compiles, or that arguments' types choose (`overload`)."""
    compiled, untyped = {"kernel", "inlined", "entry", "register_jitable", "overload"}, []
    for path, tree in python_files.items():
        if path.parts[0] != "kernels":
            continue
        choices = [function for function in functions(tree) if "overload" in _names_of_decorators(function)]
        chosen = {node.id for choice in choices for node in ast.walk(choice) if isinstance(node, ast.Name)}
        for function in functions(tree):
            given = [
                item
                for item in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
                if item.arg not in ("self", "cls")
            ]
            typed = all(item.annotation for item in given) and (function.returns is not None or function.name == "__init__")
            if not (typed or _names_of_decorators(function) & compiled or function.name in chosen):
                untyped.append(f"{path}:{function.lineno}: {function.name}")
    assert untyped == []
