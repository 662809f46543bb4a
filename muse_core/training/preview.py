"""What a recipe would build, without training: layers, parameters, memory, tokens, kernels."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from muse_core.contracts import Batch
from muse_core.data.batches import to_device
from muse_core.model.options import StackOptions
from muse_core.model.plan import plan
from muse_core.model.roles import ROLES, parameter_roles
from muse_core.training.objectives import NextToken
from muse_core.training.optimizers import make_optimizers
from muse_core.training.setup import Setup

PROBE_TOKENS = 256
"""Activations are measured on one sequence of at most this many tokens and scaled to the micro-batch."""

REST = "norm and head"
"""Name of what is neither embedding nor a layer of a block."""


def layer_rows(setup: Setup) -> list[tuple[str, str, str, int]]:
    """(name, component, distribution, parameters) of every layer in order, embedding and head included."""
    counts: Counter[str] = Counter()
    for name, parameter in setup.model.named_parameters():
        counts[name] = parameter.numel()

    def below(prefix: str) -> int:
        return sum(count for name, count in counts.items() if name.startswith(prefix + "."))

    rows = [("embedding", "embedding", "muse-core", below("embedding"))]
    if isinstance(setup.recipe.model.options, StackOptions):
        for block in plan(setup.recipe.model.options).blocks:
            for site in block:
                norm = f"blocks.{site.block}.norms.{site.name}"
                count = below(site.full_name) + below(norm)
                rows.append((site.full_name, site.use.name, site.use.distribution, count))
    rest = sum(counts.values()) - sum(row[3] for row in rows)
    rows.append((REST, setup.recipe.model.name, setup.recipe.model.distribution, rest))
    return rows


def memory_rows(setup: Setup) -> dict[str, int]:
    """Bytes: weights, gradients, moments, and the activations kept for the backward pass of one micro-batch, measured
    on a shorter sequence and scaled."""
    train = setup.recipe.train
    weights = sum(p.numel() * p.element_size() for p in setup.model.parameters())
    optimizers = make_optimizers(setup.model, train, lambda name: True, setup.kernels)
    moments = sum(like.numel() * like.element_size() for like in optimizers.expected_tensors().values())
    length = min(PROBE_TOKENS, train.sequence_length) if setup.corpus.is_text else train.sequence_length
    per_token = saved_bytes(setup, length) / length
    micro = train.micro_batch or train.batch_size
    return {
        "weights": weights,
        "gradients": weights,
        "optimiser moments": moments,
        f"activations, {micro} × {train.sequence_length} tokens": round(per_token * micro * train.sequence_length),
    }


def saved_bytes(setup: Setup, length: int) -> int:
    """Bytes that autograd keeps for the backward pass of one sequence, each storage counted once."""
    batch: Batch = next(setup.held_out_batches("validation", length, rows=1, tokens=length))
    seen: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in setup.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), setup.precision():
        result = NextToken()(setup.model, to_device(batch, setup.precision.device), None)
    assert result.total.requires_grad
    return sum(seen.values())


def role_rows(setup: Setup) -> dict[str, int]:
    """Parameters by role."""
    roles = parameter_roles(setup.model)
    return {
        role: sum(setup.model.get_parameter(name).numel() for name, own in roles.items() if own == role)
        for role in ROLES
    }


def token_rows(setup: Setup) -> dict[str, str]:
    """Tokens of the plan and of the corpus."""
    train = setup.recipe.train
    planned = train.steps * train.batch_size * train.sequence_length
    data = setup.training_data()
    splits = {name: split for name, split in setup.corpus.splits.items()}
    rows = {"planned": f"{planned:,} tokens in {train.steps:,} steps, {train.steps / data.steps_per_epoch:.2f} epochs"}
    for name, split in splits.items():
        rows[name] = f"{len(split.tokens):,} tokens, {split.num_bytes:,} bytes, {len(split.starts):,} documents"
    return rows
