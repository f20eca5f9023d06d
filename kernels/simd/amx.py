"""AVX-512 with VNNI, and beside it AMX's tiles, which tile.py uses through matrix.py."""

from .avx512vnni import *  # noqa: F403
