"""Shares of what a machine can do, from figures that a person can check. Never a time."""

import pytest

from bitnet_cli.commands.bench.kernels import Kernel
from bitnet_cli.commands.bench.limits import Peak
from bitnet_cli.commands.bench.measure import Result, Sample
from bitnet_cli.commands.bench.plan import Trial
from bitnet_cli.commands.bench.rows import kernel_keys, limit_keys
from bitnet_cli.model.traffic import Operations, Traffic

PEAK = Peak(products=1000e9, floats=200e9)


def result(n_prompt: int) -> Result:
    """10 ms a token; 4 Gop of ternary products and 0.4 of floats in it."""
    trial, each = Trial(n_prompt, 0 if n_prompt else 8, 0, 0), Traffic(100e6, 50e6, 10e6)
    kernels = [Kernel("ffn_up", 5e-3, 100e6, 4e9), Kernel("attention", 4e-3, 10e6, 0.3e9), Kernel("head", 1e-3, 50e6, 0.1e9)]
    samples = [Sample(10_000_000 * trial.tokens, 10_000_000 * trial.tokens)]
    return Result(trial, samples, traffic=each, operations=Operations(4e9, 0.1e9, 0.3e9), kernels=kernels)


def test_a_prompt_takes_at_least_the_time_of_its_arithmetic() -> None:
    """4 Gop of products in 4 ms and 0.4 Gop of floats in 2 ms: 6 of the 10 ms."""
    keys = limit_keys(result(8), [], PEAK)
    assert keys["share_of_peak_ops"] == pytest.approx(0.6)
    assert (keys["peak_ops_per_s"], keys["peak_float_ops_per_s"]) == PEAK
    assert "share_of_peak_ops" not in limit_keys(result(8), [], Peak(0.0, 0.0))


def test_each_kernel_has_the_limit_of_its_arithmetic() -> None:
    prompt = {kernel["name"]: kernel.get("share_of_limit") for kernel in kernel_keys(result(8), 50e9, PEAK)["kernels"]}
    assert prompt == {"ffn_up": pytest.approx(0.8), "attention": pytest.approx(0.375), "head": None}
    decode = {kernel["name"]: kernel.get("share_of_limit") for kernel in kernel_keys(result(0), 50e9, PEAK)["kernels"]}
    assert decode == {"ffn_up": pytest.approx(0.4), "attention": pytest.approx(0.05), "head": pytest.approx(1.0)}
