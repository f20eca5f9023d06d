"""The energy ladder: the papers' published joules, and power counters in a powercap tree of our own."""

import os
from pathlib import Path

import pytest

from bitnet_cli.machine import energy

# hidden, feed-forward, layers, heads, KV heads, head_dim of the published configurations (config.json of each model), and the joules that
# arXiv 2504.12285, table 1 prints; all but the last in float16.
PUBLISHED = {
    "LLaMA3.2-1B": ((2048, 8192, 16, 32, 8, 64), "0.258"),
    "Gemma3-1B": ((1152, 6912, 26, 4, 1, 256), "0.186"),
    "Qwen2.5-1.5B": ((1536, 8960, 28, 12, 2, 128), "0.347"),
    "SmolLM2-1.7B": ((2048, 8192, 24, 32, 32, 64), "0.425"),
    "MiniCPM-2B": ((2304, 5760, 40, 36, 36, 64), "0.649"),
    "BitNet b1.58 2B4T": ((2560, 6912, 30, 20, 5, 128), "0.028"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_joules(name: str) -> None:
    (hidden, feed_forward, layers, heads, kv_heads, dim), printed = PUBLISHED[name]
    weights = layers * hidden * (2 * heads * dim + 2 * kv_heads * dim + 3 * feed_forward)
    joules = energy.arithmetic_joules(weights, layers, heads * dim, ternary=name.startswith("BitNet"))
    assert f"{joules:.3f}" == printed


def zone(root: Path, folder: str, name: str, microjoules: int, wraps_at: int = 1000) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_packages_are_added_and_others_left_out(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100, 10**9)
    part = zone(tmp_path, "intel-rapl:0:0", "core", 0, 10**9)
    zone(tmp_path, "intel-rapl:0:1", "package-0", 0, 10**9)  # a part, whatever it is called
    second = zone(tmp_path, "intel-rapl:1", "package-1", 7, 10**9)
    copy = zone(tmp_path, "intel-rapl:2", "package-1", 7, 10**9)  # a second die that shows the same counter
    mmio = zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100, 10**9)
    whole = zone(tmp_path, "intel-rapl:3", "psys", 0, 10**9)
    meter = energy.Meter(tmp_path)
    assert [z.name for z in meter.zones] == ["package-0", "package-1"]
    meter.start()
    for counter in (part, copy, mmio, whole):
        counter.write_text("900000000\n")
    first.write_text("1500100\n")
    second.write_text("500007\n")
    assert meter.stop() == pytest.approx(2.0)


def test_a_counter_that_begins_anew(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 262_000_000_000, 262_143_328_850)
    meter = energy.Meter(tmp_path)
    meter.start()
    counter.write_text("856671150\n")
    assert meter.stop() == pytest.approx(1000.0)


def test_a_counter_that_vanishes(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = energy.Meter(tmp_path)
    meter.start()
    counter.unlink()
    assert meter.stop() is None
    assert not meter.works
    assert "can no longer be read" in meter.reason
    meter.start()
    assert meter.stop() is None


def test_a_counter_with_a_word_in_it(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5).write_text("none\n")
    assert energy.package_zones(tmp_path)[0] == []


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    counter.chmod(0)
    if os.access(counter, os.R_OK):  # root may read everything
        read = Path.read_text

        def denied(path: Path, *arguments: object, **options: object) -> str:
            if path == counter:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_text", denied)
    zones, reason = energy.package_zones(tmp_path)
    assert zones == []
    assert "only be read by root" in reason


def test_no_tree(tmp_path: Path) -> None:
    meter = energy.Meter(tmp_path / "nothing")
    meter.measure_idle(0.0)
    meter.start()
    assert (meter.works, meter.stop(), meter.idle_watts) == (False, None, 0.0)
    assert "virtual machines" in meter.reason


def test_idle_is_subtracted_and_the_range_reaches_gross() -> None:
    """Two windows of 10 tokens: 30 and 34 J in 1 s each beside 10 W idle."""
    measured = energy.from_counters([30.0, 34.0], 2.0, 10, 10.0)
    assert measured.joules == pytest.approx(2.2)
    assert (measured.low, measured.high) == pytest.approx((2.0, 3.4))
    assert "not the wall" in measured.note
    assert "coarse" in measured.note


def test_estimates_have_ranges() -> None:
    tdp = energy.from_tdp(200.0, 0.02, 4, host=True)
    assert (tdp.low, tdp.joules, tdp.high) == pytest.approx((0.5, 0.75, 1.0))
    watts = energy.from_watts(50.0, 0.02)
    assert (watts.low, watts.joules, watts.high) == pytest.approx((0.9, 1.0, 1.1))
    ternary = 30 * 2560 * (2 * 2560 + 2 * 640 + 3 * 6912)
    model = energy.from_arithmetic(ternary, 30, 2560)
    assert model.low < model.joules == model.high < 1e-4
    assert "0.028 J for 512 tokens" in model.note
