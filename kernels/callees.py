"""Kernels that kernels call: typed and lowered once, optimised and made into machine code only as a part of what Python calls.

Numba finishes each function, to machine code and with the wrappers by which Python calls it, before it takes it into a caller, and there
optimises it again: in a tree of calls eight deep, that is most of its work, and all but the last is thrown away. Its own inlining
(`inline="always"`) copies and types a function anew for each place that calls it. Here a function that another calls becomes LLVM's code as
it stands; all of the tree is optimised at once, in the library of the kernel at its root. `@inlined` is LLVM's `alwaysinline`. Half the
time of the first run, and faster steps (docs/log.md#one-tree).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from numba.core import compiler, types, typing
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.funcdesc import PythonFunctionDescriptor
from numba.core.sigutils import normalize_signature
from numba.core.targetconfig import ConfigStack

from . import target
from .interrupts import let_interrupt
from .separate import Part


class _Library(JITCodeLibrary):
    """Code of one function, neither optimised nor loaded."""

    _shared_module: Any

    def _optimize_functions(self, module: Any) -> None:
        """Nothing: all of the tree is optimised at its root."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True

    def _get_module_for_linking(self) -> Any:
        """The function and all that it calls, as code which may be linked in many times."""
        if self._shared_module is None:
            known, waiting, whole = {self}, [self], _clone(self._final_module)
            while waiting:
                for library in waiting.pop()._linking_libraries:
                    if library in known:
                        continue
                    known.add(library)
                    if isinstance(library, _Library):
                        waiting.append(library)
                        whole.link_in(_clone(library._final_module))
                    else:
                        whole.link_in(_clone(library._get_module_for_linking()))
            for function in _defined(whole, "weak_odr"):
                function.linkage = "linkonce_odr"
            self._shared_module = whole
        return self._shared_module


def _clone(module: Any) -> Any:
    """A copy whose functions may be defined elsewhere too, and which the linker takes over whether they are called so far or not."""
    copy = module.clone()
    for function in [*_defined(copy, "external"), *_defined(copy, "linkonce_odr")]:
        function.linkage = "weak_odr"
    return copy


def _defined(module: Any, linkage: str) -> list[Any]:
    return [function for function in module.functions if not function.is_declaration and function.linkage.name == linkage]


class Root(JITCodeLibrary):
    """Code of a kernel that Python calls, with all that it calls: those are its own, so LLVM may change how they are called."""

    def _optimize_final_module(self) -> None:
        for linkage in ("linkonce_odr", "weak_odr"):
            for function in _defined(self._final_module, linkage):
                function.linkage = "internal"
        super()._optimize_final_module()


class RootCompiler(_FunctionCompiler):
    """What a dispatcher compiles by, with Root for its library."""

    def _compile_core(self, args: Any, return_type: Any) -> Any:
        flags = compiler.Flags()
        self.targetdescr.options.parse_as_flags(flags, self.targetoptions)
        context = target.context()
        library = Root(context.codegen(), self.py_func.__qualname__)
        return compiler.compile_extra(self.targetdescr.typing_context, context, self.py_func, args, return_type, flags, {}, library)


class _Apart(Root):
    """Code of a separate part, which becomes an object file and is not loaded."""

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def object_code(self, name: str, symbol: str) -> tuple[bytes, list[str]]:
        """The object file, in which the function `name` is called `symbol`, and the symbols of parts that it lacks."""
        self.finalize()
        let_interrupt()
        module, codegen = self._final_module, self._codegen
        module.get_function(name).name = symbol
        missing = [function.name for function in module.functions if function.is_declaration and function.name in _parts]
        return codegen._tm.emit_object(module), missing


_parts: dict[str, Part] = {}  # those whose callers were compiled here
_found: ContextVar[Callable[[Part], object] | None] = ContextVar("found", default=None)


@contextmanager
def separately(found: Callable[[Part], object]) -> Iterator[None]:
    """What is marked separate is only called by what the body compiles, and not a part of it. found: told of each such kernel."""
    token = _found.set(found)
    try:
        yield
    finally:
        _found.reset(token)


def of(dispatcher: Any) -> "Callees":
    """What kernels see of a dispatcher."""
    return dispatcher.get_call_template.__self__  # type: ignore[no-any-return]


class Callees:
    """What kernels see of a dispatcher of Numba's: `called` in place of its get_call_template, `found` of its get_overload.

    inlined: into every caller, with the caller's rules for float operations.
    returns: of what is compiled separately, what it returns, a name of Numba's; else None.
    """

    def __init__(self, dispatcher: Any, inlined: bool):
        self.dispatcher, self._inlined = dispatcher, inlined
        self.returns: str | None = None
        self._compiled: dict[Any, tuple[Any, object]] = {}

    def called(self, args: Any, kws: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As Numba's Dispatcher.get_call_template: (template, Python signature, argument types, {})."""
        python, args = self.dispatcher._compiler.fold_argument_types(args, kws)
        if self.returns is not None:  # one code for all, also while Numba knows of a variable only that it begins with 0
            args = tuple(types.unliteral(kind) for kind in args)  # type: ignore[attr-defined]
        signature = self._compile(tuple(args))[0]
        name = self.dispatcher.py_func.__name__
        return typing.make_concrete_template(f"CallTemplate({name})", key=name, signatures=[signature]), python, args, {}

    def found(self, signature: Any) -> object:
        """As Numba's Dispatcher.get_overload: what the function's code is registered by."""
        return self._compile(tuple(normalize_signature(signature)[0]))[1]

    def signatures(self) -> list[tuple[Any, ...]]:
        """Argument types with which kernels call it so far; none of what is inlined."""
        return [] if self._inlined else [key[0] for key in self._compiled]

    def object_code(self, args: tuple[Any, ...], symbol: str) -> tuple[bytes, dict[str, Part]]:
        """An object file with the function by a name of its own, and what it calls and does not hold: symbol -> part."""
        with global_compiler_lock:
            result, library = self._result(args, None, _Apart)
            if self.returns is not None and result.signature.return_type != getattr(types, self.returns):
                raise TypeError(f"{symbol} returns {result.signature.return_type}, and is marked as {self.returns}")
            code, missing = library.object_code(result.fndesc.llvm_func_name, symbol)
        return code, {name: _parts[name] for name in missing}

    def _compile(self, args: tuple[Any, ...]) -> tuple[Any, object]:
        fast, found = ConfigStack().top().fastmath if self._inlined else None, _found.get()
        key = args, str(fast), found is not None
        with global_compiler_lock:
            if key not in self._compiled:
                apart = found is not None and self.returns is not None
                self._compiled[key] = self._declaration(args, str(self.returns)) if apart else self._code(args, fast)
                if apart and found is not None:
                    found(Part(*self._name(), args))
            return self._compiled[key]

    def _declaration(self, args: tuple[Any, ...], returns: str) -> tuple[Any, object]:
        """What a call needs, of a function that is elsewhere."""
        function, part = self.dispatcher.py_func, Part(*self._name(), args)
        symbol, name, result = part.symbol, object(), getattr(types, returns)
        _parts[symbol] = part
        names = tuple(f"a{i}" for i in range(len(args)))
        described = PythonFunctionDescriptor(
            True, function.__module__, function.__qualname__, symbol, "", {}, result, {}, names, (), lambda *_, **__: symbol, args
        )
        target.context().insert_user_function(name, described, [])
        return typing.signature(result, *args), name

    def _name(self) -> tuple[str, str]:
        function = self.dispatcher.py_func
        return function.__module__.rpartition(".")[2], function.__name__

    def _code(self, args: tuple[Any, ...], fast: Any) -> tuple[Any, object]:
        result, library = self._result(args, fast, _Library)
        name = object()
        target.context().insert_user_function(name, result.fndesc, [library])
        return result.signature, name

    def _result(self, args: tuple[Any, ...], fast: Any, kind: Any) -> tuple[Any, Any]:
        let_interrupt()
        flags, described, function = compiler.Flags(), self.dispatcher.targetdescr, self.dispatcher.py_func
        described.options.parse_as_flags(flags, self.dispatcher.targetoptions)
        if self._inlined:
            flags.fastmath = fast
        flags.forceinline = self._inlined
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        context = target.context()
        library = kind(context.codegen(), function.__qualname__)
        return compiler.compile_extra(described.typing_context, context, function, args, None, flags, {}, library), library
