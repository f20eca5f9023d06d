"""tests/golden/same_text.json: hashes of what models compute, with fused multiply-adds and without, by this machine.

    python scripts/make_golden_hashes.py

Run it only where a change is meant to change logits or text: the hashes in git are what every other CPU gave too. Then run
tests/model/test_same_text.py on all sets of a machine, and with scripts/emulate_aarch64 (which says how).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bitnet_kernels import isa

from bitnet_cli.embedded import EMBEDDED

ROOT = Path(__file__).resolve().parent.parent
OUT, PROGRAM = ROOT / "tests" / "golden" / "same_text.json", ROOT / "tests" / "model" / "golden_hashes.py"


def main() -> None:
    fastest = isa.supported(isa.cpu_features())[0]
    if fastest == "portable":
        sys.exit("this CPU has no fused multiply-add")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "tests.model.golden_models", folder], cwd=ROOT, check=True)
        files = [f"{name}={model.path}" for name, model in EMBEDDED.items()]
        files += [f"{path.stem}={path}" for path in sorted(Path(folder).glob("*.gguf"))]
        golden = {}
        for kind, name in (("fused", fastest), ("portable", "portable")):
            environment = os.environ | {"BITNET_ISA": name}
            done = subprocess.run([sys.executable, str(PROGRAM), "1", *files], env=environment, check=True, capture_output=True)
            golden[kind] = json.loads(done.stdout)["threads"]["1"]
    OUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
