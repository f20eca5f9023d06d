"""The network is used where a hub id is given, and nowhere else: by a process that has none, and by one that may open no socket."""

import os
import shutil
import subprocess
import sys

import pytest

REFUSING = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"asked the network: {arguments}")
for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
from bitnet_cli.start import main
sys.argv = ["bitnet", *sys.argv[1:]]
main()
"""
WORDS = (
    ("run", "-p", "And", "-n", "2", "--temp", "0", "-t", "1", "-q"),
    ("inspect", "--json"),
    ("--version",),
    ("run", "--list"),
    ("run", "no-such-model", "-p", "a"),
)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_nothing_is_asked_of_the_network(words: tuple[str, ...]) -> None:
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}  # which would hide a question
    done = subprocess.run([sys.executable, "-c", REFUSING, *words], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert "network" not in done.stderr and done.returncode == (2 if "no-such-model" in words else 0), done.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare to take the network away with")
def test_without_a_network_at_all() -> None:
    """In a namespace of its own, not even with an address of this machine."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make network namespaces")
    words = [*alone, sys.executable, "-m", "bitnet_cli", "run", "-p", "And the king", "-n", "3", "--temp", "0", "-t", "2", "-q"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()
