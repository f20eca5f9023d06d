"""Real clients against a server. Each is a script of its own in clients/, run by the Python that has it: this one, or BITNET_CLIENTS."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from .serving import Running

SCRIPTS = Path(__file__).parent / "clients"
PYTHON = os.environ.get("BITNET_CLIENTS", sys.executable)
PACKAGES = {
    "with_openai": "openai",
    "with_anthropic": "anthropic",
    "with_litellm": "litellm",
    "with_langchain": "langchain_openai",
    "with_llm": "llm",
}


@cache
def has(package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([PYTHON, "-c", code], check=False, stdin=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("script", PACKAGES)
def test_client(script: str, tiny: Running, tmp_path: Path) -> None:
    if not has(PACKAGES[script]):
        pytest.skip(f"{PACKAGES[script]} is not installed for BITNET_CLIENTS or this Python")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
    command = [PYTHON, str(SCRIPTS / f"{script}.py"), tiny.url, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tiny.api.gate.inside == 0
