"""Script: top logits from the planes of a head, at many sizes and with awkward numbers -> JSON, one entry a case.

Each entry: `lost`, rows among the `top` largest whose logits are not those of the whole head, bit for bit; `wrong`, other rows that hold
neither minus infinity nor their logit; `exact`, rows whose exact logit was computed; `loose`, rows whose planes are further from the
row than their errors say.
"""

import json
import sys
from typing import Any

import numpy as np
from bitnet_kernels import arrays
from head_case import Floats, Head


def matrices(rng: np.random.Generator, vocab: int, hidden: int) -> dict[str, Floats]:
    normal = rng.standard_normal((vocab, hidden)).astype(np.float32) * np.float32(0.02)
    uneven = normal * rng.choice(np.array([1e-4, 1, 30], np.float32), (vocab, 1))
    outliers = normal.copy()
    outliers[:, ::37] *= 40
    ties = np.repeat(normal[: -(-vocab // 5)], 5, axis=0)[:vocab]
    nearly = normal[:1] + normal * np.float32(1e-3)  # logits that differ in their last bits
    empty = normal.copy()
    empty[1::2] = 0
    return {"normal": normal, "uneven": uneven, "outliers": outliers, "ties": ties, "nearly equal": nearly, "zeros": empty}


def activations(rng: np.random.Generator, hidden: int) -> dict[str, Floats]:
    normal = rng.standard_normal(hidden).astype(np.float32)
    peaks = normal.copy()
    peaks[:: max(hidden // 3, 1)] *= 300
    return {"normal": normal, "peaks": peaks, "tiny": normal * np.float32(1e-9), "large": normal * np.float32(1e15), "zero": normal * 0}


def together(results: dict[str, dict[str, Any]], head: Head, place: str, tokens: dict[str, Floats], rng: np.random.Generator) -> None:
    """2 to 16 tokens searched at once: of one kind, and with others whose second digits matter, which then are multiplied for all."""
    normal = rng.standard_normal((arrays.TOGETHER, head.hidden)).astype(np.float32)
    normal[-1] = head.all_rows()[1]  # a token that one row is made for
    for count in (2, 3, 5, 8, 9, 16):
        results[f"{place}, {count} together"] = head.check_all(normal[-count:], [1 + 13 * t for t in range(count)])
    for what, x in tokens.items():
        results[f"{place}, normal and {what}"] = head.check_all(np.stack([*normal[:2], x, normal[2]]), [40, 1, 3, 256])


def silenced(results: dict[str, dict[str, Any]]) -> None:
    """Heads with rows that may not be chosen, the largest among them; not a byte of theirs is read, so they may be no numbers."""
    rng = np.random.default_rng(3)
    for threads, vocab, silent in (
        (1, 301, [0]),
        (2, 515, [*range(450, 515)]),
        (3, 300, [*range(40), *range(90, 210), 299]),
        (2, 400, [*range(0, 400, 2)]),
        (4, 40, [i for i in range(40) if i not in (7, 33)]),
        (1, 2000, [*rng.permutation(2000)[:300]]),
    ):
        for name, matrix in matrices(rng, vocab, 256).items():
            matrix[silent] *= 1000
            place = f"{len(silent)} silent of {vocab}, {name}"
            head = Head(matrix, arrays.HEAD_F16, threads, silent)
            results[place] = {"lost": 0, "wrong": 0, "loose": head.loose()}
            for what, x in activations(rng, 256).items():
                for top in (1, 40, 256):
                    results[f"{place}, {what}, {top}"] = head.check(x, top)
            matrix[silent] = np.nan
            head = Head(matrix, arrays.HEAD_F16, threads, silent)
            results[f"{place}, no numbers"] = head.check(np.ones(256, np.float32), 3)
            results[f"{place}, no numbers, 9 tokens"] = head.check_all(rng.standard_normal((9, 256)).astype(np.float32), [3] * 9)


def main() -> None:
    results: dict[str, dict[str, Any]] = {}
    for threads, vocab, hidden, kind in (
        (1, 301, 128, arrays.HEAD_F16),
        (2, 515, 384, arrays.HEAD_F16),
        (3, 1000, 640, arrays.HEAD_F32),
        (2, 130, 2560, arrays.HEAD_Q8_0),
        (2, 120, 256, arrays.HEAD_BF16),
        (2, 250, 512, arrays.HEAD_Q6_K),
        (3, 250, 256, arrays.HEAD_Q4_K),
        (4, 3, 256, arrays.HEAD_F16),
    ):
        rng = np.random.default_rng(vocab)
        for name, matrix in matrices(rng, vocab, hidden).items():
            head = Head(matrix, kind, threads)
            place = f"{vocab} x {hidden} {name}"
            results[place] = {"lost": 0, "wrong": 0, "loose": head.loose()}
            tokens = activations(rng, hidden)
            for what, x in tokens.items():
                for top in (1, 2, 40, 256):
                    results[f"{place}, {what}, {top}"] = head.check(x, top)
            together(results, head, place, tokens, rng)
    silenced(results)
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((4000, 512)).astype(np.float32)
    head = Head(matrix, arrays.HEAD_F16, 2)
    results["near a row"] = head.check(matrix[1234] + rng.standard_normal(512).astype(np.float32), 1)
    matrix[77, 5] = np.nan
    matrix[78, 5] = np.inf
    results["not finite"] = Head(matrix, arrays.HEAD_F16, 2).check(np.ones(512, np.float32), 40)
    results["not finite x"] = head.check(np.full(512, np.nan, np.float32), 40)
    tokens = rng.standard_normal((9, 512)).astype(np.float32)
    tokens[4] = np.nan
    results["not finite x of nine"] = head.check_all(tokens, [40] * 9)
    json.dump(results, sys.stdout)


main()
