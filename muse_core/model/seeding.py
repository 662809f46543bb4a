"""Seeds from names: removing one component leaves every other component's initial values alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def seed_of(seed: int, name: str) -> int:
    """A 63-bit seed that depends on the run's seed and a full name only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def generator_of(seed: int, name: str) -> torch.Generator:
    """A CPU generator for (seed, name)."""
    return torch.Generator("cpu").manual_seed(seed_of(seed, name))


def set_seed(seed: int) -> None:
    """``torch.manual_seed``. Without an accelerator only the CPU's generator: torch would note the seed for a GPU to
    come, with the stack of the call, and keep the notes; that takes milliseconds each time."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """The global CPU generator, which torch's default initialisation uses, seeded for (seed, name) and restored."""
    with torch.random.fork_rng(devices=[]):
        set_seed(seed_of(seed, name))
        yield
