"""`python -m bitnet_cli` is the command `bitnet`.

Python then looks for modules in the current folder before all others, and a model is often run where it was downloaded to: that folder is
taken off the path, unless this package is from there. What Python itself imports before this file, it may still find there; `bitnet`, or
`python -P -m bitnet_cli` from Python 3.11 on, never looks.
"""

import os
import sys
from pathlib import Path


def _forget_the_current_folder() -> None:
    here, package = Path(os.curdir).resolve(), Path(__file__).resolve().parents[1]
    if sys.path and here != package and Path(sys.path[0]).resolve() == here:
        del sys.path[0]


_forget_the_current_folder()

from bitnet_cli.start import main  # noqa: E402  # what it imports must not come from there either

main()
