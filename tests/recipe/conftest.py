"""Components to write recipes about, without any plugin of this project."""

from __future__ import annotations

from typing import Literal

import attrs
import pytest
from attrs import validators

from muse_core.builtin import (
    muse_models,
    muse_optimizers,
    muse_schedules,
    muse_sinks,
    muse_stages,
    muse_tokenizers,
)
from muse_core.component import Component, UseFilter, UsePotential
from muse_core.plugins import Discovered, Loaded, Registered, Registry


@attrs.frozen(kw_only=True)
class Snr:
    """A filter."""

    threshold: float = attrs.field(default=2.0, validator=validators.gt(0.0))
    """Multiple of the noise."""
    mode: Literal["soft", "hard"] = "soft"
    """How it acts."""


@attrs.frozen(kw_only=True)
class Memory:
    """A memory."""

    heads: int = attrs.field(default=4, validator=[validators.ge(1), validators.le(64)])
    """Heads."""
    period: int = 64
    """Period."""
    filters: tuple[UseFilter, ...] = ("snr",)
    """Filters."""
    spread: tuple[float, float] = (0.1, 0.9)
    """Two numbers."""

    def problems(self, recipe):
        if self.period >= recipe.train.sequence_length:
            yield f"period {self.period} is not below train.sequence_length {recipe.train.sequence_length}"


@attrs.frozen(kw_only=True)
class Mixer:
    """A mixer."""

    potential: tuple[UsePotential, ...] = attrs.field(validator=validators.min_len(1))
    """Terms."""
    gain: float | None = None
    """Gain."""

    def __attrs_post_init__(self):
        if self.gain is not None and self.gain > 10 * len(self.potential):
            raise ValueError("gain is more than ten times the number of terms")


@attrs.frozen(kw_only=True)
class Well:
    """A potential."""

    depth: float = attrs.field()
    """Depth."""

    @depth.validator
    def _positive(self, attribute, value):
        if value < 0:
            raise ValueError("a well is not a hill")

    @staticmethod
    def upgrade(table, from_version):
        if from_version == "0.8":
            raise ValueError("0.8 had no wells")
        if "height" in table:
            table["depth"] = -table.pop("height")
        return table


@attrs.frozen(kw_only=True)
class Pages:
    """A source."""

    paths: tuple[str, ...] = ()
    """Files."""


@attrs.frozen(kw_only=True)
class Scaled:
    """An initializer."""

    std: float = 0.02
    """Standard deviation."""


@attrs.frozen(kw_only=True)
class Raising:
    """A layer whose author erred."""

    size: int = attrs.field(default=1, validator=lambda self, attribute, value: {}[value])
    """Size."""


@attrs.frozen(kw_only=True)
class Plain:
    """Nothing to choose."""


ROWS = {
    "source": {"state-of-the-union": Pages, "pages": Pages},
    "memory layer": {"memory": Memory},
    "layer": {"mixer": Mixer, "raising": Raising, "dense": Plain},
    "filter": {"snr": Snr, "other": Plain},
    "potential": {"well": Well, "flat": Plain},
    "initializer": {"scaled": Scaled},
    "safety monitor": {"guard": Plain},
    "kernel backend": {"fast": Plain, "slow": Plain},
}


@pytest.fixture(scope="session")
def registry() -> Registry:
    """A distribution "lab 0.9" with the components above, beside the core's own."""
    return Registry((loaded("muse-core", "0.1.0", {
        "model": {row.name: row.options for row in muse_models()},
        "stage": {row.name: row.options for row in muse_stages()},
        "optimizer": {row.name: row.options for row in muse_optimizers()},
        "schedule": {row.name: row.options for row in muse_schedules()},
        "tokenizer": {row.name: row.options for row in muse_tokenizers()},
        "sink": {row.name: row.options for row in muse_sinks()},
    }), loaded("lab", "0.9", ROWS)))


def loaded(distribution: str, version: str, rows: dict[str, dict[str, type]]) -> Loaded:
    """A loaded plugin with these options classes by kind and name."""
    plugin = Discovered(distribution=distribution, version=version, entry_point="e", module="m", api=1)
    return Loaded(plugin=plugin, rows=tuple(
        Registered(kind=kind, component=Component(name, options=options, implementation=f"m:{name.title()}"),
                   distribution=distribution, version=version, entry_point="e", module="m")
        for kind, named in rows.items() for name, options in named.items()
    ))


GOOD = """
format = 1
name = "fuzz"
seed = 7
data = { use = "pages", paths = ["a.txt"], tokenizer = { use = "bpe", vocabulary = 400 } }
monitors = ["guard"]

[model]
width = 16
depth = 4

[[model.block]]
use = "mixer"
gain = 1.5
potential = [{ use = "well", depth = 0.001 }, "flat"]

[[model.block]]
use = "memory"
period = 64
filters = ["snr", { use = "snr", threshold = 0.1, mode = "hard" }]
at = "::2"

[train]
steps = 10
learning_rate = 3e-3
optimizer = { use = "muon", momentum = 0.9 }

[[initializers]]
use = "scaled"
match = "*.weight"
"""


@pytest.fixture(scope="session")
def good() -> str:
    """A sound recipe on the components above, with every shape of value."""
    return GOOD
