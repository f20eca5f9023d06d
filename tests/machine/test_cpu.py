"""Name and last cache of the CPU, from files of the kinds that Linux shows."""

from pathlib import Path

from bitnet_cli.machine import cpu


def test_names(tmp_path: Path) -> None:
    x86, arm, none = tmp_path / "x86", tmp_path / "arm", tmp_path / "none"
    x86.write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 7763 64-Core Processor\n")
    arm.write_text("processor\t: 0\nCPU part\t: 0xd0c\nHardware\t: BCM2835\n")
    none.write_text("processor\t: 0\n")
    assert cpu.cpu_name(x86) == "AMD EPYC 7763 64-Core Processor"
    assert cpu.cpu_name(arm) == "BCM2835"
    assert cpu.cpu_name(none)
    assert cpu.cpu_name(tmp_path / "missing")


def test_last_cache(tmp_path: Path) -> None:
    for number, (kind, size) in enumerate([("Data", "32K"), ("Instruction", "64M"), ("Unified", "1024K"), ("Unified", "32M"), ("?", "x")]):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        (folder / "type").write_text(kind + "\n")
        (folder / "size").write_text(size + "\n")
    assert cpu.last_cache_bytes(tmp_path) == 32 << 20
    assert cpu.last_cache_bytes(tmp_path / "missing") == cpu.TYPICAL_LAST_CACHE
