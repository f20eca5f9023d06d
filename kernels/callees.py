"""Kernels that kernels call: typed and lowered once, optimised and made into machine code only as a part of what Python calls.

Numba finishes each function, to machine code and with the wrappers by which Python calls it, before it takes it into a caller, and there
optimises it again: in a tree of calls eight deep, that is most of its work, and all but the last is thrown away. Its own inlining
(`inline="always"`) copies and types a function anew for each place that calls it. Here a function that another calls becomes LLVM's code as
it stands; all of the tree is optimised at once, in the library of the kernel at its root. `@inlined` is LLVM's `alwaysinline`. Half the
time of the first run, and faster steps (docs/log.md#one-tree).
"""

from functools import cache
from typing import Any

from numba.core import compiler, typing
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.sigutils import normalize_signature
from numba.core.targetconfig import ConfigStack

from . import compile_cache


class _Ours(JITCodeLibrary):
    """For the instruction set of this process."""

    def add_ir_module(self, module: Any) -> None:
        for function in module.functions:
            for attribute in _attributes() if function.blocks else ():
                set.add(function.attributes, attribute)  # llvmlite's own list of attributes lacks these
        super().add_ir_module(module)


@cache
def _attributes() -> tuple[str, ...]:
    from .simd import selected

    return getattr(selected, "ATTRIBUTES", ())


class _Library(_Ours):
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


class Root(_Ours):
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
        context = self.targetdescr.target_context
        library = Root(context.codegen(), self.py_func.__qualname__)
        library.enable_object_caching()
        return compiler.compile_extra(self.targetdescr.typing_context, context, self.py_func, args, return_type, flags, {}, library)


class Callees:
    """What kernels see of a dispatcher of Numba's: `called` in place of its get_call_template, `found` of its get_overload.

    inlined: into every caller, with the caller's rules for float operations.
    """

    def __init__(self, dispatcher: Any, inlined: bool):
        self.dispatcher, self._inlined = dispatcher, inlined
        self._compiled: dict[Any, tuple[Any, object]] = {}

    def called(self, args: Any, kws: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As Numba's Dispatcher.get_call_template: (template, Python signature, argument types, {})."""
        python, args = self.dispatcher._compiler.fold_argument_types(args, kws)
        signature = self._compile(tuple(args))[0]
        name = self.dispatcher.py_func.__name__
        return typing.make_concrete_template(f"CallTemplate({name})", key=name, signatures=[signature]), python, args, {}

    def found(self, signature: Any) -> object:
        """As Numba's Dispatcher.get_overload: what the function's code is registered by."""
        return self._compile(tuple(normalize_signature(signature)[0]))[1]

    def signatures(self) -> list[tuple[Any, ...]]:
        """Argument types with which kernels call it so far; none of what is inlined."""
        return [] if self._inlined else [args for args, _ in self._compiled]

    def _compile(self, args: tuple[Any, ...]) -> tuple[Any, object]:
        fast = ConfigStack().top().fastmath if self._inlined else None
        key = args, str(fast)
        with global_compiler_lock:
            if key not in self._compiled:
                self._compiled[key] = self._code(args, fast)
            return self._compiled[key]

    def _code(self, args: tuple[Any, ...], fast: Any) -> tuple[Any, object]:
        flags, target, function = compiler.Flags(), self.dispatcher.targetdescr, self.dispatcher.py_func
        target.options.parse_as_flags(flags, self.dispatcher.targetoptions)
        if self._inlined:
            flags.fastmath = fast
        flags.forceinline = self._inlined
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        context, name = target.target_context, object()
        library = _Library(context.codegen(), function.__qualname__)
        result = compiler.compile_extra(target.typing_context, context, function, args, None, flags, {}, library)
        context.insert_user_function(name, result.fndesc, [library])
        compile_cache.compiled.done += 1
        return result.signature, name
