"""Parts of split models with bytes changed, cut off or doubled: only our errors, which name a part, and no file left open."""

import random
from pathlib import Path

import pytest

from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.reader import open_gguf

from ..gguf_file.splitting import forged_part, part

NORM = ([8], 0, bytes(32))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three of two tensors each, which end with the last tensor's bytes."""
    paths = [part(tmp_path, "m", number, 3) for number in (1, 2, 3)]
    for number, path in enumerate(paths, 1):
        path.write_bytes(forged_part(number, 3, 6, {f"t{number}.{i}": NORM for i in range(2)}))
    return paths


def test_the_parts_are_valid(parts: list[Path]) -> None:
    with open_gguf(parts[0]) as file:
        assert len(file.tensors) == 6


def opens(path: Path, names: list[str]) -> bool:
    """Whether it opens; else the error is ours, one line, and begins with a part's path."""
    try:
        open_gguf(path).close()
    except BitnetError as error:
        assert error.exit_code in (3, 4) and str(error).isprintable()
        assert any(str(error).startswith(f"{path.with_name(name)}: ") for name in names), str(error)
        return False
    return True


@pytest.mark.parametrize("which", [0, 1, 2])
def test_cut_at_every_byte(which: int, parts: list[Path]) -> None:
    whole, names = parts[which].read_bytes(), [path.name for path in parts]
    for size in range(len(whole)):
        parts[which].write_bytes(whole[:size])
        assert not opens(parts[1], names)


def test_random_damage(parts: list[Path]) -> None:
    rng, kept, names = random.Random(5), [path.read_bytes() for path in parts], [path.name for path in parts]
    refused = 0
    for _ in range(600):
        which = rng.randrange(3)
        raw = bytearray(kept[which])
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.choice((0, 1, 2, 3, 127, 255))
        parts[which].write_bytes(raw)
        refused += not opens(parts[rng.randrange(3)], names)
        parts[which].write_bytes(kept[which])
    assert 300 < refused < 600
    assert opens(parts[0], names)


def test_parts_in_each_others_places(parts: list[Path]) -> None:
    """All 27 ways to fill three names from three parts: only the right one opens."""
    kept, names = [path.read_bytes() for path in parts], [path.name for path in parts]
    for number in range(27):
        chosen = [number // 9, number // 3 % 3, number % 3]
        for path, which in zip(parts, chosen, strict=True):
            path.write_bytes(kept[which])
        assert opens(parts[0], names) == (chosen == [0, 1, 2])
