"""Script: compile a kernel, again and again, with Ctrl-C at a later moment of llvmlite's `link_modules` each time, until one is whole.

Prints how often it was interrupted. After the linker, LLVM has freed a module that llvmlite still holds: an exception there would have it
freed twice.
"""

import signal
import sys
from types import FrameType
from typing import Any

from bitnet_kernels.bandwidth import Bytes
from bitnet_kernels.frame import Frame
from bitnet_kernels.native import Asked, _built
from numpy import zeros

STEP = 3  # calls and returns between two moments

asked = Asked("bandwidth", "read", Frame(Bytes(zeros(64, "u1"))).layout, 3, False)
left = 0


def watch(frame: FrameType, event: str, argument: Any) -> None:
    """Send the signal when the last of so many calls and returns has come."""
    global left
    if frame.f_back is not None and "link_modules" in (frame.f_code.co_name, frame.f_back.f_code.co_name):
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)


interrupted, moment, whole = 0, STEP, False
while not whole:
    left = moment
    sys.setprofile(watch)
    try:
        _built(asked, lambda symbol: None)
        whole = left > 0
    except KeyboardInterrupt:
        interrupted += 1
    finally:
        sys.setprofile(None)
    moment += STEP
print(interrupted)
