"""Which CPU this is: its name, as the operating system gives it, and the size of its last cache."""

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

TYPICAL_LAST_CACHE = 32 << 20  # bytes, where the system does not say


@cache
def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the CPU, such as `AMD EPYC 7763 64-Core Processor`; of its architecture where the system has no better one."""
    try:
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text(errors="replace").splitlines() if ":" in line)
        named = {key.strip().lower(): value.strip() for key, value in fields.items()}
        for key in ("model name", "cpu model", "hardware"):
            if named.get(key):
                return named[key]
    except OSError:
        pass
    return _name_elsewhere() or platform.processor() or platform.machine() or "unknown CPU"


def _name_elsewhere() -> str:
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.strip()
        if sys.platform == "win32":
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return ""


def _size(text: str) -> int:
    text = text.strip().upper()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * unit


def last_cache_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache that the first CPU sees (Linux); TYPICAL_LAST_CACHE where it is not told."""
    sizes = []
    for folder in caches.glob("index*"):
        try:
            if (folder / "type").read_text().strip() != "Instruction":
                sizes.append(_size((folder / "size").read_text()))
        except (OSError, ValueError):
            continue
    return max(sizes, default=TYPICAL_LAST_CACHE)


def host_cpus() -> int:
    """CPUs that the operating system has; a virtual machine's, not its host's."""
    return os.cpu_count() or 1
