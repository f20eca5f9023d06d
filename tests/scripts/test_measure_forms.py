"""scripts/measure_forms.py runs, and has a line for every text."""

import re
import subprocess
import sys
from pathlib import Path

from bitnet_cli.embedded import EMBEDDED_MODEL


def test_a_line_for_every_text(repo_root: Path) -> None:
    command = [sys.executable, str(repo_root / "scripts" / "measure_forms.py"), str(EMBEDDED_MODEL), "--tokens", "3", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4096 tokens made ready" in done.stdout
    assert len(re.findall(r"^(?:sampled|greedy), .*\d ms$", done.stdout, re.MULTILINE)) == 10
