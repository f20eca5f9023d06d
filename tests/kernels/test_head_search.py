"""Top logits from the planes of a head: exactly those of the whole head, for every set that this CPU runs. head_tops.py does the work."""

from collections.abc import Callable
from typing import Any

import pytest
from bitnet_kernels import isa

SETS = [name for name in isa.supported(isa.cpu_features()) if name != isa.NAIVE]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_top_logits_are_those_of_the_whole_head(run_script: Callable[..., Any], name: str) -> None:
    results = run_script("head_tops.py", keep=True, BITNET_ISA=name)
    assert {place: r["lost"] for place, r in results.items() if r["lost"]} == {}
    assert {place: r["wrong"] for place, r in results.items() if r["wrong"]} == {}
    assert {place: r["loose"] for place, r in results.items() if r.get("loose")} == {}
    assert results["near a row"]["exact"] <= 10  # of 4,000: the planes do rule rows out
    assert results["301 x 128 normal, normal, 1"]["exact"] <= 30
    assert sum("silent" in place for place in results) > 500  # rows that may not be chosen: `wrong` counts those that are read or given
