"""The fixtures of the pytest plugin, as a test class outside this project inherits and overrides them."""

from __future__ import annotations

import attrs
import pytest
from torch import nn

from muse_core.component import Component
from muse_core.errors import RecipeError
from muse_core.testing import registry_with


@attrs.frozen(kw_only=True)
class OursOptions:
    """Nothing to choose."""


class Ours(nn.Module):
    def __init__(self, options, context):
        super().__init__()
        self.width = context.width

    def forward(self, x, state, signals, tokens):
        raise NotImplementedError


def test_builds_what_is_installed(muse_registry, muse_build) -> None:
    assert muse_registry.find("layer", "attention").distribution == "muse-baseline"
    assert muse_build("layer", "attention", heads=2, width=8).heads == 2
    with pytest.raises(RecipeError, match="there is no layer 'ours'"):
        muse_build("layer", "ours")


class TestOverridden:
    @pytest.fixture
    def muse_registry(self):
        return registry_with(("layer", Component("ours", options=OursOptions, implementation=f"{__name__}:Ours")))

    def test_builds_what_is_not(self, muse_build) -> None:
        assert isinstance(muse_build("layer", "ours", width=24), Ours)
        assert muse_build("layer", "ours", width=24).width == 24
