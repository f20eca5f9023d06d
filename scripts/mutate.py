"""Change one thing in a module, run its tests, and see whether they notice. POSIX only.

    python scripts/mutate.py parse --sample 300          also: ternary, safetensors, sampler, naive; prints those that nothing noticed
    python scripts/mutate.py parse --survivors           only those of the log that nothing noticed, again
    python scripts/mutate.py parse --show 17             mutant 17 as a diff
    python scripts/mutate.py --report build/mutations    what the logs say, by target

A mutant is one change of a syntax tree: a comparison, an operation, an integer by one, a condition negated, a value that is not returned.
Nothing is written to the sources: the changed module is compiled in place of the file's when it is imported, in the process of the
tests and in those that tests start. That process is forked from one that has run the tests, so libraries are loaded, and kernels compiled.
The same seed takes the same mutants. A line of JSON for each goes to --out; what stands there already is not run again.
"""

import argparse
import ast
import copy
import difflib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "BITNET_MUTANT"  # file and number, for processes that tests start
MEMORY = 6 << 30  # bytes besides mapped files: some mutants allocate without end

OTHERS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE,),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE,),
    ast.GtE: (ast.Gt,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitOr,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}


class Target(NamedTuple):
    """Files whose mutants are made, and of each the tests that concern it, the quickest first."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    more: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # of single files, in place of `tests`


_TWINS = tuple(f"kernels/test_naive_{part}.py" for part in ("values", "packed", "step"))  # they compile nothing
_LAYOUTS = tuple(f"ternary/test_{part}.py" for part in ("ik_layouts", "scales", "layouts"))
TARGETS = {
    "parse": Target(
        ("bitnet_cli/gguf_file/parse.py",),
        (
            *(f"hostile/test_gguf{part}.py" for part in ("_places", "_edges", "_tensors", "")),
            *(f"gguf_file/test_{part}.py" for part in ("reader", "dialects", "legacy_q2_0")),
        ),
    ),
    "ternary": Target(
        ("bitnet_cli/ternary/*.py",),
        _LAYOUTS,
        {
            "layouts.py": (*_LAYOUTS, "commands/test_quantize_scales.py"),
            "hf_packed.py": ("ternary/test_hf_packed.py",),
            "absmean.py": ("ternary/test_bounds.py",),
            "counts.py": ("ternary/test_counts.py", "ternary/test_ik_layouts.py", "tensors/test_contents.py"),
            "i2_s_order.py": ("ternary/test_i2_s_order.py",),
        },
    ),
    "safetensors": Target(
        ("bitnet_cli/checkpoint/safetensors.py",), ("checkpoint/test_safetensors_edges.py", "checkpoint/test_safetensors.py")
    ),
    "sampler": Target(
        ("bitnet_cli/model/sampler.py",),
        tuple(f"model/test_{part}.py" for part in ("sampler_bounds", "choose_allowed", "sampler", "silent", "sampler_properties")),
    ),
    "naive": Target(("kernels/naive/*.py",), _TWINS, {"kv_cache.py": (*_TWINS, "kernels/test_kv_cache.py")}),
}


class Mutant(NamedTuple):
    file: str
    number: int  # of the changes that this file allows
    line: int
    what: str


def _without_types(tree: ast.Module) -> None:
    """Annotations say nothing at run time (of no named tuple or dataclass do their values), and docstrings are no code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]:
                argument.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Name("object", ast.Load())


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What can be changed at one node: in words, and a function that does it in place."""

    def setting(owner: Any, name: str, value: Any) -> Callable[[], None]:
        return lambda: setattr(owner, name, value)

    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in OTHERS.get(type(op), ()):
                yield f"{type(op).__name__} -> {other.__name__}", lambda i=i, other=other: node.ops.__setitem__(i, other())  # type: ignore[misc]
    elif isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        for other in OTHERS.get(type(node.op), ()):
            yield f"{type(node.op).__name__} -> {other.__name__}", setting(node, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert)):
        yield f"{type(node.op).__name__} dropped", setting(node, "op", ast.UAdd())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", setting(node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        for step in (1, -1):
            yield f"{node.value} -> {node.value + step}", setting(node, "value", node.value + step)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield f"{node.value} -> {node.value * 1.1 or 0.1}", setting(node, "value", node.value * 1.1 or 0.1)
    if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
        yield "condition negated", setting(node, "test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.comprehension):
        for i, test in enumerate(node.ifs):
            yield "filter negated", lambda i=i, test=test: node.ifs.__setitem__(i, ast.UnaryOp(ast.Not(), test))  # type: ignore[misc]
    if isinstance(node, ast.Return) and node.value is not None:
        yield "return dropped", setting(node, "value", ast.Constant(None))
    if isinstance(node, ast.Raise) and node.exc is not None:
        yield "raise dropped", lambda: (setattr(node, "exc", None), setattr(node, "dropped", True))


class _Dropping(ast.NodeTransformer):
    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Pass() if getattr(node, "dropped", False) else node


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, Callable[[], Any]]]:
    """All changes of a tree, in one order."""
    _without_types(tree)
    skipped = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}  # words of messages
    for node in ast.walk(tree):
        if id(node) not in skipped:
            for what, change in _changes(node):
                yield node, what, change


def mutants_of(file: str) -> list[Mutant]:
    tree, found, line = ast.parse((ROOT / file).read_text(encoding="utf-8")), [], 0
    for number, (node, what, _) in enumerate(places(tree)):
        line = getattr(node, "lineno", line)
        found.append(Mutant(file, number, line, what))
    return found


def mutated(file: str, number: int) -> ast.Module:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    change = next(change for i, (_, _, change) in enumerate(places(tree)) if i == number)
    change()
    return ast.fix_missing_locations(_Dropping().visit(tree))


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, number: int):
        super().__init__(name, path)
        self._number = number

    def get_code(self, fullname: str) -> CodeType:
        return compile(mutated(str(Path(self.path).relative_to(ROOT)), self._number), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, file: str, number: int):
        parts = Path(file).with_suffix("").parts
        parts = ("bitnet_kernels", *parts[1:]) if parts[0] == "kernels" else parts
        self._package = parts[-1] == "__init__"
        self._name, self._path, self._number = ".".join(parts[:-1] if self._package else parts), str(ROOT / file), number

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        places = [str(Path(self._path).parent)] if self._package else None
        loader = _Loader(name, self._path, self._number)
        return importlib.util.spec_from_file_location(name, self._path, loader=loader, submodule_search_locations=places)


def install(mutant: str) -> None:
    """From now on, importing the module of `file:number` gives the mutant."""
    file, _, number = mutant.rpartition(":")
    sys.meta_path.insert(0, _Finder(file, int(number)))


def _pytest(tests: Iterable[str]) -> int:
    import pytest

    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow and not live"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[AnyExample()]))


def _forget() -> None:
    """Import anew what may hold a part of the mutated module: all but the kernels, which stay compiled."""
    for name, module in list(sys.modules.items()):
        own = name.split(".")[0] in ("bitnet_cli", "tests") or name.startswith("bitnet_kernels.naive")
        if own or str(getattr(module, "__file__", "")).startswith(str(ROOT / "tests")):
            del sys.modules[name]
    if "bitnet_kernels" in sys.modules:
        sys.modules["bitnet_kernels"].__dict__.pop("naive", None)


def run_tests(tests: tuple[str, ...], mutant: str, limit: float, above: str) -> tuple[str, float]:
    """killed, survived or timeout, and seconds. mutant: as `install`, empty: none; above: folder with a sitecustomize."""
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            if mutant:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.dup2(2, 1)
            os.environ["PYTHONPATH"] = os.pathsep.join([above, os.environ.get("PYTHONPATH", "")])
            _forget()
            if mutant:
                os.environ[VARIABLE] = mutant
                install(mutant)
            code = _pytest(tests)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        os._exit(code)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - begin
        if ended:
            return "survived" if status == 0 else "killed", seconds
        if seconds > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", seconds
        time.sleep(0.02)


class AnyExample:
    """A plugin of pytest's: Hypothesis does not look for the smallest example, since any will do."""

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        settings.register_profile("mutants", deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")


def tests_of(target: Target, file: str) -> tuple[str, ...]:
    return target.more.get(Path(file).name, target.tests)


def results(log: Path) -> dict[tuple[str, int], str]:
    """What a log says of each mutant: its last line."""
    lines = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    return {(line["file"], line["number"]): line["result"] for line in lines}


def run(name: str, sample: int, seed: int, out: Path, survivors: bool) -> None:
    """Run the sampled mutants of a target."""
    target = TARGETS[name]
    files = sorted(str(path.relative_to(ROOT)) for pattern in target.files for path in ROOT.glob(pattern))
    every = [mutant for file in files for mutant in mutants_of(file)]
    chosen = random.Random(seed).sample(every, min(sample, len(every)))
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{name}.jsonl"
    done = {mutant for mutant, word in results(log).items() if word == "killed" or not survivors}
    print(f"{name}: {len(every)} mutants in {len(files)} files, {len(chosen)} of them sampled, {len(done)} done", flush=True)
    chosen = [mutant for mutant in chosen if (mutant.file, mutant.number) not in done]
    if not chosen:
        report(out)
        return
    os.chdir(ROOT)
    if _pytest(dict.fromkeys(test for mutant in chosen for test in tests_of(target, mutant.file))):
        sys.exit("the tests fail without any mutant")
    limits: dict[tuple[str, ...], float] = {}
    with tempfile.TemporaryDirectory() as above:
        Path(above, "sitecustomize.py").write_text(
            f"import os, sys\nif os.environ.get({VARIABLE!r}):\n    sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
            f"    import mutate\n    sys.path.pop(0)\n    mutate.install(os.environ[{VARIABLE!r}])\n"
        )
        for mutant in chosen:
            tests = tests_of(target, mutant.file)
            if tests not in limits:
                word, seconds = run_tests(tests, "", 1200, above)
                if word != "survived":
                    sys.exit(f"the tests fail in a forked process: {' '.join(tests)}")
                print(f"{' '.join(tests)}: {seconds:.1f} s", flush=True)
                limits[tests] = 4 * seconds + 20
            word, seconds = run_tests(tests, f"{mutant.file}:{mutant.number}", limits[tests], above)
            with log.open("a") as file:
                file.write(json.dumps({**mutant._asdict(), "result": word, "seconds": round(seconds, 1)}) + "\n")
            if word == "survived":
                print(f"{mutant.file}:{mutant.line}: {mutant.what} ({mutant.number})", flush=True)
    report(out)


def report(out: Path) -> None:
    """Counts of each log."""
    for log in sorted(out.glob("*.jsonl")):
        counts = Counter(results(log).values())
        print(f"{log.stem}: {sum(counts.values())} mutants, " + ", ".join(f"{count} {word}" for word, count in sorted(counts.items())))


def show(name: str, number: int, file: str | None) -> None:
    """One mutant beside its source."""
    target = TARGETS[name]
    path = file or next(str(p.relative_to(ROOT)) for pattern in target.files for p in sorted(ROOT.glob(pattern)))
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    _without_types(tree)
    before = ast.unparse(copy.deepcopy(tree)).splitlines()
    print("\n".join(difflib.unified_diff(before, ast.unparse(mutated(path, number)).splitlines(), path, path, n=2, lineterm="")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=[*TARGETS])
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/mutations"))
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--show", type=int)
    parser.add_argument("--file", help="with --show: which of the target's files")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    if given.report:
        report(given.report)
    elif given.target and given.show is not None:
        show(given.target, given.show, given.file)
    elif given.target:
        run(given.target, given.sample, given.seed, given.out, given.survivors)
    else:
        parser.error("a target, or --report")


if __name__ == "__main__":
    main()
