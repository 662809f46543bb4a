"""Capacity of linear memory against 1/√(1 + n/d)."""

import math

import pytest
import torch
from muse_niah_probe.capacity import capacity, expected_cosine

from muse_core.testing.building import bound_kernels

fast_weights = bound_kernels("float32").bind("fast_weights", needs=())



def measure(buried, kernel=fast_weights):
    return capacity(
        kernel,
        width=64,
        buried=buried,
        trials=64,
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.mark.parametrize("buried", [0, 16, 64, 256])
def test_recall_from_under_n_pairs_is_what_theory_says(buried):
    measured, expected = measure(buried)
    assert expected == pytest.approx(1 / math.sqrt(1 + buried / 64))
    assert measured == pytest.approx(expected, rel=0.05)


def test_a_kernel_that_forgets_falls_short():
    def leaky(query, key, value, log_decay, rate, **options):
        return fast_weights(query, key, value, log_decay - 0.01, rate, **options)

    assert measure(64, leaky).measured < 0.9 * expected_cosine(64, 64)
