"""What gets installed: every package, no more, and each with its data and its declared dependencies."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.commands.reporting import lacks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Folder in the repository -> import name (pyproject.toml, tool.setuptools.package-dir).
IMPORT_NAMES = {"bitnet_cli": "bitnet_cli", "kernels": "bitnet_kernels"}

TOP_LEVEL = {
    ".ci", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "README.md", "SECURITY.md",
    "bitnet_cli", "docs", "kernels", "models", "pyproject.toml", "scripts", "tests",
}  # fmt: skip

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {"llvmlite": "numba", "markdown_it": "markdown-it-py"}


@pytest.fixture(scope="module")
def pyproject(repo_root: Path) -> dict[str, Any]:
    return tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in_tree(root: Path) -> set[str]:
    found = set()
    for folder, name in IMPORT_NAMES.items():
        for init in (root / folder).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(root / folder).parts]))
    return found


def normalised(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_package_list_equals_tree(repo_root: Path, pyproject: dict[str, Any]) -> None:
    assert set(pyproject["tool"]["setuptools"]["packages"]) == packages_in_tree(repo_root)
    assert pyproject["tool"]["setuptools"]["package-dir"] == {"bitnet_kernels": "kernels"}


def test_every_code_folder_is_a_package(python_files: dict[Path, ast.Module]) -> None:
    """A folder without __init__.py would work from a checkout and be missing from the wheel."""
    code = [path for path in python_files if path.parts[0] in IMPORT_NAMES]
    assert [path for path in code if path.with_name("__init__.py") not in python_files] == []


def test_package_data_is_listed(repo_root: Path, project_files: tuple[Path, ...], pyproject: dict[str, Any]) -> None:
    """Files in packages that are not Python match a pattern of package-data, and every pattern matches a file."""
    patterns = pyproject["tool"]["setuptools"]["package-data"]
    matched: set[Path] = set()
    for package, globs in patterns.items():
        for glob in globs:
            hits = set((repo_root / package.replace(".", "/")).glob(glob))
            if not hits and package in ("bitnet_cli.embedded", "bitnet_kernels"):
                continue  # what scripts/ makes: the model, without which .ci/run fails at `bitnet run`, and machine code for a wheel
            assert hits, f"package-data: {package}: {glob} matches nothing"
            matched |= {path.relative_to(repo_root) for path in hits}
    data = {path for path in project_files if path.parts[0] in IMPORT_NAMES and path.suffix != ".py"}
    assert data - matched == set()


def test_imports_are_declared(python_files: dict[Path, ast.Module], pyproject: dict[str, Any]) -> None:
    """Whatever the packages import is in the standard library or a declared dependency, those of an extra only in one folder or module."""
    declared = {normalised(item) for item in pyproject["project"]["dependencies"]}
    optional = pyproject["project"]["optional-dependencies"]
    more = {
        folder: {normalised(item) for item in optional[extra]}
        for folder, extra in (("serving", "serve"), ("bench", "plot"), ("evaluation", "eval"), ("ray_batch.py", "ray"))
    }
    known = set(sys.stdlib_module_names) | set(IMPORT_NAMES.values())
    missing = []
    for path, tree in python_files.items():
        if path.parts[0] not in IMPORT_NAMES:
            continue
        allowed = declared.union(*(extra for folder, extra in more.items() if folder in path.parts))
        for name in imported(tree) - known:
            if normalised(DISTRIBUTIONS.get(name, name)) not in allowed:
                missing.append(f"{path}: {name}")
    assert missing == []


def imported(tree: ast.Module) -> set[str]:
    """First parts of the names that absolute imports anywhere in the file name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_version_is_stated_once(pyproject: dict[str, Any]) -> None:
    from bitnet_cli import __version__

    assert pyproject["project"]["version"] == __version__


def test_what_an_index_would_show(pyproject: dict[str, Any], repo_root: Path) -> None:
    """Addresses and classifiers; one placeholder for where the repository is, which the README explains."""
    project = pyproject["project"]
    assert set(project["urls"]) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert {url.startswith("https://github.com/OWNER/bitnet") for url in project["urls"].values()} == {True}
    assert (repo_root / "README.md").read_text(encoding="utf-8").count("OWNER/bitnet") == 1
    for minor in range(10, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in project["classifiers"]


def test_hints_name_what_is_on_an_index(repo_root: Path, python_files: dict[Path, ast.Module], pyproject: dict[str, Any]) -> None:
    """This project is on none, so nothing says to install it, or an extra of it, by its name."""
    for path in [*python_files, *repo_root.glob("docs/*.md"), repo_root / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert path.name in (Path(__file__).name, "log.md") or not re.search(r"install [^\n]*bitnet-cli", text), path
    for extra in ("serve", "eval"):
        message = str(lacks("a command", extra, ImportError("no", name="thing")))
        names = [re.split("[><=]", wanted)[0] for wanted in pyproject["project"]["optional-dependencies"][extra]]
        assert message == f"a command needs thing: pip install {' '.join(names)}"


def test_top_level_of_the_repository(project_files: tuple[Path, ...]) -> None:
    assert {path.parts[0] for path in project_files} == TOP_LEVEL


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_else(repo_root: Path, project_files: tuple[Path, ...], tmp_path: Path) -> None:
    try:
        setuptools = int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        setuptools = 0
    if setuptools < 77:
        pytest.skip("building without a network needs setuptools 77 or newer in this environment")

    # From a copy: a build leaves build/lib behind, and the next wheel would hold files deleted since.
    for path in project_files:
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repo_root / path, tmp_path / "source" / path)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "source")], check=True, stdin=subprocess.DEVNULL)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
    installed = {path for path in names if not path.parts[0].endswith(".dist-info")}
    expected = {Path(IMPORT_NAMES[path.parts[0]], *path.parts[1:]) for path in project_files if path.parts[0] in IMPORT_NAMES}
    assert installed == expected
    assert {path.parts[0] for path in installed} == set(IMPORT_NAMES.values())
