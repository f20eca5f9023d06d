"""Who has which tokens and rows of a step."""

import numpy as np
import pytest
from bitnet_kernels import arrays
from bitnet_kernels.group_rows import Groups
from bitnet_kernels.split import OWN, share_of, split, tokens_of


def test_every_token_and_row_has_one_thread() -> None:
    """With any number of threads, for tokens around each border: crews of equal size have all tokens, and their lanes all rows."""
    one = np.int64(1)
    for threads in range(1, 17):
        counts = {n for groups in range(1, threads + 1) for n in range(groups * OWN - 1, groups * OWN + 2)} | {1, 2, 15, 17, 333, 512}
        for tokens in sorted(counts):
            shares = [share_of(tokens, np.int64(thread), np.int64(threads)) for thread in range(threads)]
            (lanes,) = {s.lanes for s in shares}
            assert threads % lanes == 0 and (lanes == threads or tokens >= threads // lanes * OWN)
            seen = np.zeros((tokens, 37), int)
            alone = np.zeros(tokens, int)
            for s in shares:
                first, last = split(37, one, s.lane, s.lanes)
                seen[s.begin : s.end, first:last] += 1
                first, last = tokens_of(s)
                alone[first:last] += 1
            assert (seen == 1).all() and (alone == 1).all()


def test_crews_are_as_small_as_tokens_allow() -> None:
    """More threads have tokens of their own with more tokens; six threads for three crews' tokens stand in pairs."""
    for tokens, threads, lanes in ((2 * OWN - 1, 2, 2), (2 * OWN, 2, 1), (3 * OWN, 6, 2), (5 * OWN, 7, 7), (7 * OWN, 7, 1), (1, 1, 1)):
        assert share_of(tokens, np.int64(0), np.int64(threads)).lanes == lanes


def test_what_threads_write_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a row for each thread, but for what is written once in a while: a core reads ahead past the end of its own."""
    threads = 29  # as nothing else
    sizes = arrays.Sizes(1, 256, 2, 1, 128, 512, 1000, 0, 1e-5, np.int64(arrays.HEAD_F16))

    def strides() -> dict[str, int]:
        scratch = arrays.new_scratch(sizes, 64, 256, threads, Groups(128))
        assert scratch.groups is not None
        every = [item for part in (scratch, scratch.groups) for item in part._asdict().items() if item[0] != "groups"]
        return {name: a.strides[0] for name, a in every if len(a) == threads}

    apart = strides()
    monkeypatch.setattr(arrays, "APART", 0)
    gaps = {name: apart[name] - stride for name, stride in strides().items()}
    assert {name for name, gap in gaps.items() if gap < 1 << 16} == {"counts", "column_counts", "head_counts", "listed", "head_places"}
    assert {"tile", "totals", "block_sums", "plane_sums", "attended"} < set(gaps)
