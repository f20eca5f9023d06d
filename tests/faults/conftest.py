"""The fixtures of the commands' tests."""

from ..commands.conftest import folders, models, refused

__all__ = ["folders", "models", "refused"]
