"""Real clients against a server. Each is a script of its own in clients/, run by the Python that has it: this one, or BITNET_CLIENTS."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from .serving import Running

SCRIPTS = Path(__file__).parent / "clients"
PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
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


def run(package: str, folder: Path, *arguments: str, **more: str) -> str:
    """What a program prints that needs the package."""
    if not has(package):
        pytest.skip(f"{package} is not installed for BITNET_CLIENTS or this Python")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", **more}
    done = subprocess.run(
        [PYTHON, *arguments], check=False, capture_output=True, text=True, env=environment, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def blocks(language: str) -> list[str]:
    """Of docs/serve.md."""
    return [str(text) for text in re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["openai", "litellm", "langchain_openai", "anthropic"])
def test_what_the_page_shows(package: str, tiny: Running, tmp_path: Path) -> None:
    (code,) = [block for block in blocks("python") if re.search(rf"^(import|from) {package}\b", block)]
    before = tiny.asked()
    run(package, tmp_path, "-c", code.replace("http://127.0.0.1:8080", tiny.url))
    assert tiny.asked() == before + 1


@pytest.mark.slow
def test_llm_as_the_page_shows_it(tiny: Running, tmp_path: Path) -> None:
    (told,) = blocks("yaml")
    (tmp_path / "extra-openai-models.yaml").write_text(told.replace("http://127.0.0.1:8080", tiny.url))
    assert '`llm -m tiny "Hello" --key none`' in PAGE.read_text(encoding="utf-8")
    said = run("llm", tmp_path, "-m", "llm", "-m", "tiny", "Hello", "--key", "none", LLM_USER_PATH=str(tmp_path))
    assert said.strip()


@pytest.mark.slow
@pytest.mark.parametrize("script", PACKAGES)
def test_client(script: str, tiny: Running, tmp_path: Path) -> None:
    run(PACKAGES[script], tmp_path, str(SCRIPTS / f"{script}.py"), tiny.url, str(tmp_path))
    assert tiny.api.gate.inside == 0
