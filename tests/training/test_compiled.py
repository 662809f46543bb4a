"""What is compiled is the model without a gradient through its state, which the loop never asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch._inductor.graph import GraphLowering

from muse_core.contracts import ModelOutput
from muse_core.model.projections import joined
from muse_core.training.compilation import WithoutStateGradient, compiled
from muse_core.training.setup import Setup

Table = Callable[..., dict[str, Any]]
MEMORY = {
    "dropout": 0.0,
    "depth": 1,
    "block": [
        {"use": "resolvent", "heads": 4},
        {"use": "fast-weights", "heads": 2},
        {"use": "attention", "heads": 2},
    ],
}


@pytest.fixture
def model(table: Table, prepare: Callable[[dict[str, Any]], Setup]) -> Any:
    return prepare(table(model=MEMORY)).model


def leaves(state: Any) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in leaves(value)]
    return [] if state is None else [state]


def test_the_state_alone_loses_its_gradient(model: Any) -> None:
    ids = torch.arange(48).view(2, 24)
    plain, bare = model(ids), WithoutStateGradient(model)(ids)
    assert any(leaf.requires_grad for leaf in leaves(plain.state))
    assert not any(leaf.requires_grad for leaf in leaves(bare.state))
    for one, other in zip(leaves(plain.state), leaves(bare.state), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain.hidden, bare.hidden) and bare.hidden.requires_grad
    assert plain.metrics.keys() == bare.metrics.keys()


@pytest.mark.skipif(not hasattr(config.triton, "mix_order_reduction"), reason="torch before 2.10 makes none")
@pytest.mark.parametrize("wanted", [True, "blocks"])
def test_no_kernel_sums_in_two_orders(monkeypatch: pytest.MonkeyPatch, wanted: Any) -> None:
    """torch loses the sum of such a kernel that stands beside others in one tensor
    (https://github.com/pytorch/pytorch/issues/193061). They are made for a GPU alone and for many tokens, so that here
    it is asked whether the compiler may make one: of a forward and of a backward pass."""
    graphs, may = GraphLowering.codegen, []

    def codegen(self: Any) -> Any:
        may.append(config.triton.mix_order_reduction)
        return graphs(self)

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8, bias=False)])  # a product is called and no C++ made for it

        def forward(self, x: Any, state: Any = None, tokens: Any = None) -> Any:
            return ModelOutput(self.blocks[0](x), {}, {}, {})

    monkeypatch.setattr(GraphLowering, "codegen", codegen)
    assert config.triton.mix_order_reduction is True
    torch.compiler.reset()
    x = torch.randn(4, 8, requires_grad=True)
    with config.patch(force_disable_caches=True):
        compiled(Blocks(), wanted)(x).hidden.sum().backward()
    assert x.grad is not None and may == [False, False]
    assert config.triton.mix_order_reduction is True


def test_what_is_no_call_is_the_models_own(model: Any) -> None:
    wrapped = WithoutStateGradient(model)
    assert wrapped.vocabulary_size == model.vocabulary_size and wrapped.logits == model.logits
    with pytest.raises(AttributeError, match="no_such_thing"):
        wrapped.no_such_thing  # noqa: B018


def test_a_compiled_backward_pass_is_given_one_gradient(model: Any, tangents: tuple[Any, list[int]]) -> None:
    """That of the hidden states: a state with a gradient of zeros would be one more for each of its tensors."""
    backend, given = tangents
    ids = torch.arange(48).view(2, 24)
    torch.compiler.reset()
    torch.compile(WithoutStateGradient(model), backend=backend)(ids).hidden.sum().backward()
    assert given == [1]
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(ids).hidden.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_a_hooked_map_is_called_and_not_joined() -> None:
    maps, x = [nn.Linear(6, 4, bias=False), nn.Linear(6, 3, bias=False)], torch.randn(2, 5, 6)
    expected = joined(x, maps)
    maps[1].register_forward_hook(lambda module, given, output: output * 0)
    found = joined(x, maps)
    assert torch.equal(found[..., 4:], torch.zeros(2, 5, 3))
    torch.testing.assert_close(found[..., :4], expected[..., :4])
