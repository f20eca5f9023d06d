"""Script: what children of this process can do -> JSON: whether machine code was kept, and what a template in Jinja was rendered to.

child_case.py FOLDER           as it is
child_case.py FOLDER FROZEN    as a frozen program, whose executable is the file FROZEN
"""

import json
import sys
from pathlib import Path


def object_code() -> bytes:
    """A function `a` that returns 0, as this machine's object file."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    return bytes(machine.emit_object(binding.parse_assembly("define i32 @a() {\n  ret i32 0\n}\n")))


def main() -> None:
    """Try both."""
    from bitnet_kernels import native
    from bitnet_kernels.separate import Code

    from bitnet_cli.errors import UnsupportedError
    from bitnet_cli.text.chat.jinja import JinjaTemplate
    from bitnet_cli.text.chat.templates import Message

    code = object_code()
    if len(sys.argv) > 2:
        sys.frozen, sys.executable = True, sys.argv[2]  # type: ignore[attr-defined]
    folder = Path(sys.argv[1])
    native.keep(folder, [Code("a", (), code)])
    try:
        rendered = JinjaTemplate("t", "{{ messages[0].content }}", "t.jinja").pieces([Message("user", "hello")])
    except UnsupportedError as error:
        rendered = [(str(error), False)]
    print(json.dumps({"files": sorted(path.name for path in folder.iterdir()), "rendered": rendered[0][0], "from": native.__file__}))


if __name__ == "__main__":
    main()
