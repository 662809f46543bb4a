"""The mlp router: the best scores, weights that train it with one choice too."""

import pytest
import torch

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.testing import build_component

TOKENS = Tokens(torch.arange(9).expand(2, -1))


@pytest.mark.parametrize("hidden", [0, 12])
def test_the_best_are_chosen_with_weights_that_sum_to_one(hidden):
    router = build_component("router", "mlp", top_k=3, hidden=hidden, experts=5)
    routing = router(torch.randn(2, 9, 16), {}, TOKENS)
    assert torch.equal(routing.expert, routing.logits.argsort(-1, descending=True)[..., :3])
    torch.testing.assert_close(routing.weight, routing.logits.sort(-1, descending=True).values[..., :3].softmax(-1))


def test_a_single_choice_trains_the_router():
    router = build_component("router", "mlp", top_k=1, experts=4)
    routing = router(torch.randn(2, 9, 16), {}, TOKENS)
    first, second = routing.logits.sort(-1, descending=True).values[..., :2].unbind(-1)
    torch.testing.assert_close(routing.weight[..., 0], (first - second).sigmoid())
    (gradient,) = torch.autograd.grad((routing.weight * torch.randn(2, 9, 1)).sum(), router.score.weight)
    assert gradient.abs().max() > 1e-3


def test_more_choices_than_experts_are_refused():
    with pytest.raises(RecipeError, match="top_k = 5 exceeds the number of experts, 4"):
        build_component("router", "mlp", top_k=5, experts=4)
