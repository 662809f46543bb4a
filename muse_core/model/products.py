"""Whether matrix products on a GPU are right, before anything is computed from them.

Where CUDA's multi-process service limits what of a GPU a process may use, cuBLAS returned parts of sums in place of
sums: docs/guide/how-to/compare.md says of which products. Nothing raises an error then, and a model trains on them.
"""

from __future__ import annotations

import functools
import os

import torch

from muse_core.errors import RecipeError
from muse_core.model.precision import computes_bf16

SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
SHAPES = (
    (64, 8192, 384), (16, 65536, 512), (192, 1024, 192), (512, 512, 512), (1024, 1024, 1024), (8192, 512, 1152),
)
"""(rows, terms, columns), such that of every share of an H200 with wrong products that was found one is wrong here:
gradients of weights, long sums for few entries, and plain products."""
NEAR = 2**-6


def repeatable_products() -> None:
    """Of products on a GPU in this process, from the first on: cuBLAS reads the setting when it starts, and without it
    torch refuses every product of a deterministic run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def require_products(device: torch.device, *, deterministic: bool = False) -> None:
    """Multiply matrices of which every entry of the product is 1. Raises RecipeError where it is not; on a CPU nothing
    is computed. Once a process for each GPU. ``deterministic``: the process may train such a run."""
    if device.type != "cuda":
        return
    if deterministic:
        repeatable_products()
    wrong = wrong_product(device)
    if wrong is not None:
        raise RecipeError(f"train.device: {wrong}")


@functools.cache
def wrong_product(device: torch.device) -> str | None:
    """What is wrong with products of a device, and what to do; None where they are right."""
    for dtype in (torch.float32, *([torch.bfloat16] if computes_bf16(device) else [])):
        for rows, terms, columns in SHAPES:
            one = torch.ones(rows, terms, dtype=dtype, device=device)
            other = torch.full((terms, columns), 1 / terms, dtype=dtype, device=device)  # exact: a power of two
            away = (product(one, other).float() - 1).abs()
            furthest = float(away.nan_to_num(nan=torch.inf).max())
            if furthest > NEAR:
                kind = str(dtype).removeprefix("torch.")
                return (
                    f"matrix products on {device} are wrong: sums of {terms:,} terms, by {rows} × {terms} and "
                    f"{terms} × {columns} in {kind}, are off by up to {furthest:.3g} of their value.{_cause()}"
                )
    return None


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The product as layers compute it."""
    return one @ other


def _cause() -> str:
    share = os.environ.get(SHARE)
    if share is not None:
        return f" {SHARE} is {share} here, with which cuBLAS does so - unset it"
    return (
        f" cuBLAS does so where CUDA's multi-process service gives a process a part of the GPU, as {SHARE} asks it "
        "to - take such a limit off; without one the GPU or its libraries are at fault"
    )


def limited_gpu(device: torch.device) -> str:
    """What is added to a fault in a model's values where the environment limits what of the GPU a process may use: a
    sentence with a space before it, or nothing."""
    share = os.environ.get(SHARE)
    if device.type != "cuda" or share is None:
        return ""
    return (
        f" {SHARE} is {share} here: with it an H200 gave such values for layers that are right - unset it and try again"
    )
