"""A method that departs from the contract is a sentence that says which parameter differs."""

from __future__ import annotations

import inspect

import pytest

from muse_core.kinds import KINDS
from muse_core.model.signatures import METHODS, mismatch


class Good:
    def __init__(self, options, context):
        pass

    def forward(self, x, state, signals, tokens):
        pass


def test_every_kind_has_a_protocol_whose_methods_exist() -> None:
    assert set(METHODS) == set(KINDS)
    for protocol, methods in METHODS.values():
        assert all(inspect.isfunction(getattr(protocol, name)) for name in methods)


def test_good_layer_passes_and_may_have_more_with_defaults() -> None:
    class More(Good):
        def forward(self, x, state, signals, tokens, chunk=64):
            pass

    assert mismatch("layer", Good) is None
    assert mismatch("memory layer", More) is None


@pytest.mark.parametrize(
    "signature, expected",
    [
        ("self, x, signals, state, tokens", "parameter 2 is 'signals' where the contract has 'state'"),
        ("self, x, state, signals", "lacks parameter 4, 'tokens'"),
        ("self, x, state, signals, tokens, mask", "parameter 'mask' is not in the contract"),
    ],
)
def test_difference_is_named(signature: str, expected: str) -> None:
    space: dict = {"Good": Good}
    exec(f"class Bad(Good):\n    def forward({signature}): pass", space)
    assert expected in mismatch("layer", space["Bad"])


def test_missing_method_is_named() -> None:
    class Empty:
        def __init__(self, options, context):
            pass

    assert "no method forward(x, state, signals, tokens)" in mismatch("layer", Empty)
