"""The fixtures of the commands' tests."""

from ..commands.conftest import folders, refused

__all__ = ["folders", "refused"]
