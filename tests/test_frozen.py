"""A program that PyInstaller froze, with the Python API in it: `sys.executable` is that program, and never taken for a Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PyInstaller", reason="the extra `clients` is not installed")
pytestmark = pytest.mark.slow

from .model.chat_models import chat_model  # noqa: E402

PROGRAM = """
import json, sys
started = open("started", "a")
print("once", file=started, flush=True)  # a program that starts itself says so twice
from bitnet_cli import load
from bitnet_cli.errors import UnsupportedError
with load(threads=2) as model:
    text = model.generate("And the king said", max_tokens=8, temperature=0).text
facts = {"text": text, "frozen": sys.frozen, "numba": "numba" in sys.modules}
with load(sys.argv[1], threads=1) as model:
    facts["answer"] = model.chat([{"role": "user", "content": "a"}], max_tokens=4, temperature=0).text
    try:
        model.chat([{"role": "user", "content": "a"}], template="model").text
    except UnsupportedError as error:
        facts["error"] = str(error)
print(json.dumps(facts))
"""
WITHOUT = ("torch", "transformers", "lm_eval", "datasets", "pandas", "scipy", "matplotlib", "IPython", "pytest", "litellm", "openai")


def test_a_frozen_program(repo_root: Path, tmp_path: Path) -> None:
    """Its kernels are compiled once and kept; what only a Python of its own could do is refused by name."""
    (tmp_path / "program.py").write_text(PROGRAM)
    for name, source in (("bitnet_cli", "bitnet_cli"), ("bitnet_kernels", "kernels")):  # PyInstaller sees nothing of editable installs
        shutil.copytree(repo_root / source, tmp_path / "sources" / name, ignore=shutil.ignore_patterns("__pycache__"))
    wanted = ["--collect-submodules", "bitnet_kernels", "--collect-data", "bitnet_cli", "--paths", "sources"]
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", *wanted, "program.py"]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "sources"), "BITNET_CACHE_DIR": str(tmp_path / "kernels")}
    exclude = [word for name in WITHOUT for word in ("--exclude-module", name)]
    done = subprocess.run([*command, *exclude], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = chat_model(tmp_path / "m.gguf", template="{# <|im_start|> #}{{ messages[0].content }}")
    found = []
    for _ in range(2):
        frozen = [str(tmp_path / "dist" / "program" / "program"), str(model)]
        ran = subprocess.run(frozen, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=600)
        assert ran.returncode == 0, ran.stderr
        found.append(json.loads(ran.stdout))
    first, second = found
    assert first["frozen"] and second["frozen"] and first["text"] == second["text"] == " unto him, I will not go to"
    assert first["numba"] and (second["numba"] is False or sys.platform != "linux")  # machine code was kept without a trial
    assert "no Python" in first["error"] and first["answer"] == second["answer"]
    assert (tmp_path / "started").read_text().splitlines() == ["once"] * 2
