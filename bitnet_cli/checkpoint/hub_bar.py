"""Progress of a download from the hub: huggingface_hub's bar under the file's name, in one line that goes away when the file is there."""

import inspect
import os
import sys
from typing import Any

from bitnet_cli.errors import printable
from bitnet_cli.machine.terminal import NARROW, dumb


def bar_options(download: Any, name: str) -> dict[str, Any]:
    """Arguments for `hf_hub_download` that show its progress in this way; none where it is too old for that."""
    if "tqdm_class" not in inspect.signature(download).parameters:
        return {}
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *arguments: Any, **options: Any):
            options |= {"desc": printable(name.rpartition("/")[2]), "leave": False, "dynamic_ncols": True}
            try:
                columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            except (OSError, ValueError):
                columns = 80
            if columns < NARROW:
                options |= {"desc": options["desc"][: max(columns - 8, 1)], "bar_format": "{desc} {percentage:3.0f} %"}
            if dumb():
                options["disable"] = True
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    return {"tqdm_class": Bar}
