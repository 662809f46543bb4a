"""How far back a model's answer depends on what it read: the gradient of the last token's loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_core.evaluation.held_out import undisturbed
from muse_core.model.precision import Precision


def gradient_reach(model: Any, ids: Tensor, precision: Precision) -> Tensor:
    """(B,) float64: ‖∂ loss_N/∂ e_1‖ / ‖∂ loss_N/∂ e_N‖, with e_i the embedding of token i and loss_N the cross-entropy
    of the token after the last.

    ids (B, N + 1) int64: one document in each row, N tokens and the one that follows. Zero says that the first token
    has no influence; in a long sequence without memory it is that.
    """
    ids = ids.to(precision.device)
    with undisturbed(model), torch.enable_grad():
        embedded = model.embed(ids[:, :-1]).detach().requires_grad_()
        with precision():
            hidden = model(embedded).hidden[:, -1]
            loss = F.cross_entropy(model.logits(hidden).float(), ids[:, -1], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, embedded)
    norms = gradient.double().norm(dim=-1)
    return (norms[:, 0] / norms[:, -1]).cpu()
