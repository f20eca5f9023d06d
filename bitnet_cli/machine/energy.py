"""Energy of a run on the CPU: measured where there is a counter, else estimated, always with the method and a range.

The ladder, best first (docs/bench.md, "Energy"):

1  rapl        counters of the CPU package in Linux's powercap tree, gross and above the idle level; the package, not the wall
2  watts       watts that the user read from a meter
3  tdp         thermal design power times the share of the CPU's cores that were busy, half of it to all of it
4  arithmetic  joules of additions and multiplications at 7 nm, as the BitNet papers compute them: no memory, not comparable with 1 to 3
5  proxies     bytes and CPU seconds a token: always there

powercap: https://www.kernel.org/doc/html/latest/power/powercap/powercap.html. A zone's counter `energy_uj` runs up to
`max_energy_range_uj` and begins again at 0. Since CVE-2020-8694 only root may read it.
"""

import time
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")
IDLE_SECONDS = 1.0
TDP_BAND = (0.5, 1.0)  # of TDP x busy share: what all cores draw under vector load, by published measurements

# Picojoules an operation at 7 nm (PokeBNN, arXiv 2112.00133, table; arXiv 2504.12285, table 4).
ADD_INT8, ADD_FP16, MUL_FP16 = 0.007, 0.16, 0.34
PAPER_TOKENS = 512  # the length of the text that the papers' joules are for


class Energy(NamedTuple):
    """Joules a token by one method, never without its range."""

    method: str
    joules: float
    low: float
    high: float
    note: str


class Zone(NamedTuple):
    """One package counter."""

    name: str
    counter: Path  # microjoules
    wraps_at: int  # microjoules


def package_zones(root: Path = POWERCAP) -> tuple[list[Zone], str]:
    """The package counters that can be read, and why there are none (empty where there are some).

    Of zones with one name (several dies of a package, or the same counter by MMIO) the first counts. psys holds the package too, and
    core, uncore and dram are parts of it or beside it: left out.
    """
    zones: dict[str, Zone] = {}
    denied = False
    for folder in sorted(root.glob("*-rapl:*")):
        if folder.name.count(":") != 1 or "mmio" in folder.name:  # a:b:c is a part of a:b
            continue
        try:
            name = (folder / "name").read_text().strip()
            if not name.startswith("package") or name in zones:
                continue
            counter = folder / "energy_uj"
            int(counter.read_text())
            zones[name] = Zone(name, counter, int((folder / "max_energy_range_uj").read_text()))
        except PermissionError:
            denied = True
        except (OSError, ValueError):
            continue
    if zones:
        return list(zones.values()), ""
    if denied:
        return [], f"{root}: the power counters may only be read by root (chmod a+r on energy_uj lets everybody)"
    return [], f"{root}: no package power counter, as in most virtual machines"


class Meter:
    """Joules of all packages between `start` and `stop`. None once a counter cannot be read."""

    def __init__(self, root: Path = POWERCAP):
        self.zones, self.reason = package_zones(root)
        self._before: list[int] | None = None
        self.idle_watts = 0.0

    @property
    def works(self) -> bool:
        return bool(self.zones)

    def _read(self) -> list[int] | None:
        try:
            return [int(zone.counter.read_text()) for zone in self.zones] or None
        except (OSError, ValueError) as error:
            self.zones, self.reason = [], f"a power counter can no longer be read: {error}"
            return None

    def start(self) -> None:
        """Begin a window."""
        self._before = self._read()

    def stop(self) -> float | None:
        """Joules of the window; None where they are not known. A counter may have begun anew once."""
        before, zones = self._before, self.zones
        after = self._read()
        if before is None or after is None:
            return None
        steps = (a - b if a >= b else a - b + zone.wraps_at for a, b, zone in zip(after, before, zones, strict=True))
        return sum(steps) / 1e6

    def measure_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Watts of the packages while this process does nothing, but others may: what `net` leaves out."""
        if not self.works:
            return
        self.start()
        begin = time.perf_counter()
        time.sleep(seconds)
        joules = self.stop()
        self.idle_watts = (joules or 0.0) / (time.perf_counter() - begin)


def from_counters(joules: list[float], seconds: float, tokens: int, idle_watts: float) -> Energy:
    """Net of idle. joules: gross, one a repeat of `tokens` tokens; seconds: of all repeats. Range: the repeats', widened to gross."""
    idle = idle_watts * seconds / len(joules)
    each = [j / tokens for j in joules]
    mean = sum(each) / len(each)
    net = max(mean - idle / tokens, 0.0)
    low = max(min(each) - idle / tokens, 0.0)
    note = (
        f"RAPL, CPU package and not the wall: net of {idle_watts:.1f} W idle; gross {mean:.3g} J; "
        f"{seconds:.1f} s in {len(joules)} windows; the range ends at the largest gross"
    )
    if seconds < 5:
        note += "; under 5 s of counting, so coarse: raise -r"
    return Energy("rapl", net, low, max(each), note)


def from_watts(watts: float, seconds: float) -> Energy:
    """watts: of the machine under this load, by the user. seconds: a token. Range: 10 %, a meter's and the load's."""
    joules = watts * seconds
    return Energy("watts", joules, 0.9 * joules, 1.1 * joules, f"{watts:g} W as given, times the time; +-10 % for meter and load")


def from_tdp(tdp: float, cpu_seconds: float, cpus: int, host: bool) -> Energy:
    """tdp: watts of the whole CPU package; cpu_seconds: of all threads, a token; cpus: that the package has.

    Power is TDP x busy share x 0.5 to 1; the middle is given. host: `cpus` are this system's, which in a virtual machine are too few.
    """
    full = tdp * cpu_seconds / cpus
    low, high = (share * full for share in TDP_BAND)
    where = "as this system shows; a virtual machine's share of its host is smaller, see --tdp-cpus" if host else "as given"
    note = f"TDP model, no measurement: {tdp:g} W x CPU seconds / {cpus} CPUs ({where}), times 0.5 to 1"
    return Energy("tdp", (low + high) / 2, low, high, note)


def arithmetic_joules(weights: float, layers: int, inner: int, *, ternary: bool, tokens: int = PAPER_TOKENS) -> float:
    """Joules of the operations of a text of `tokens` tokens, by the model of the BitNet papers; memory costs nothing in it.

    weights: parameters of the linear layers without the head; inner: width of all query heads together. A linear layer is one addition
    (int8) a ternary weight and token, or an addition and a multiplication in float16. Attention is float16, not causal:
    2 x tokens^2 x inner multiply-adds a layer. The published 0.028 J of BitNet b1.58 2B4T and its table's five others come out of it.
    """
    product = ADD_INT8 if ternary else ADD_FP16 + MUL_FP16
    attention = layers * 2.0 * tokens**2 * inner * (ADD_FP16 + MUL_FP16)
    return (tokens * weights * product + attention) * 1e-12


def from_arithmetic(weights: float, layers: int, inner: int) -> Energy:
    """Of one token, as a share of a text of 512. No range is known: real processors spend 1,000 to 10,000 times as much."""
    joules = arithmetic_joules(weights, layers, inner, ternary=True) / PAPER_TOKENS
    linear = weights * ADD_INT8 * 1e-12
    note = (
        f"arithmetic only: the papers' model of adders and multipliers at 7 nm, {joules * PAPER_TOKENS:.2g} J for {PAPER_TOKENS} tokens; "
        "no memory, no control logic: not comparable with a measurement; from linear layers alone to with attention"
    )
    return Energy("arithmetic", joules, linear, joules, note)
