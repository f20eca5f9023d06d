"""What an object file asks for from outside, as LLVM makes it for this machine and for others."""

import sys
from pathlib import Path

import pytest
from bitnet_kernels import child, native, object_file
from bitnet_kernels.separate import Code
from llvmlite import binding

CALLS = """
declare i32 @{name}(i32)
define i32 @f(i32 %a) {{
  %b = call i32 @{name}(i32 %a)
  ret i32 %b
}}
"""
ALONE = "define i32 @f(i32 %a) {\n  ret i32 %a\n}\n"


def compiled(text: str, triple: str) -> bytes:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = binding.parse_assembly(text)
    module.triple = triple
    return bytes(binding.Target.from_triple(triple).create_target_machine().emit_object(module))


@pytest.mark.parametrize("triple", ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"])
def test_names(triple: str) -> None:
    assert object_file.wanted(compiled(ALONE, triple)) == set()
    assert object_file.wanted(compiled(CALLS.format(name="other"), triple)) == {"other"}


@pytest.mark.parametrize("triple", ["x86_64-pc-windows-msvc", "arm64-apple-macosx", "i686-unknown-linux-gnu"])
def test_of_other_kinds_nothing_is_told(triple: str) -> None:
    with pytest.raises(ValueError, match="not ELF"):
        object_file.wanted(compiled(ALONE, triple))


def test_damaged() -> None:
    """Nothing but ValueError, and never a name less where the file is whole."""
    code = compiled(CALLS.format(name="other"), "x86_64-unknown-linux-gnu")
    for end in range(len(code)):
        try:
            assert object_file.wanted(code[:end]) <= {"other", "othe", "oth"}
        except ValueError:
            continue
    for at in range(64 * 8):
        changed = bytearray(code)
        changed[at // 8] ^= 1 << at % 8
        try:
            object_file.wanted(bytes(changed))
        except ValueError:
            continue


@pytest.mark.skipif(sys.platform != "linux", reason="object files that are not ELF")
def test_without_a_trial_the_names_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is missing would end the next process."""
    monkeypatch.setattr(child, "interpreter", lambda: None)
    triple = binding.get_process_triple()
    for name, kept in (("abs", True), ("bitnet_yield_thread", True), ("no_such_function", False)):
        native.keep(tmp_path, [Code(f"calls-{name}", (), compiled(CALLS.format(name=name), triple))])
        assert (tmp_path / f"calls-{name}.code").exists() == kept
    native.keep(tmp_path, [Code("x", (), b"no object file")])
    assert not (tmp_path / "x.code").exists()
