"""Primes and their control."""

import math

import pytest
import torch
from muse_prime_bump.primes import lowest_primes, primes_up_to, random_integers


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4.9, 5, 24, 25, 26, 997, 2000.5])
def test_primes_are_the_numbers_without_divisors(limit):
    assert primes_up_to(limit).tolist() == [n for n in range(math.floor(limit) + 1) if is_prime(n)]


def test_the_lowest_primes_are_enough():
    for count in (*range(1, 40), 500):
        assert len(lowest_primes(count)) == count
    assert lowest_primes(500)[-1] == 3571


def test_random_integers_are_as_dense_as_primes():
    drawn = torch.stack([random_integers(500, torch.Generator().manual_seed(seed)) for seed in range(50)])
    assert (drawn.diff(dim=1) > 0).all() and drawn.min() >= 3
    assert abs(drawn[:, -1].double().mean().item() / 3571 - 1) < 0.03
    assert (drawn[0] != drawn[1]).any()
