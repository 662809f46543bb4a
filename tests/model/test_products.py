"""Matrix products that a GPU gets wrong, as with a part of it by CUDA's multi-process service, are refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from muse_core.cli import doctor
from muse_core.errors import RecipeError
from muse_core.model import products
from muse_core.model.products import SHARE, require_products, wrong_product

CPU, GPU = torch.device("cpu"), torch.device("cuda")
Product = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    wrong_product.cache_clear()
    yield
    wrong_product.cache_clear()


def ones(one: Tensor, other: Tensor) -> Tensor:
    return torch.ones(len(one), other.shape[1], dtype=one.dtype)


def one_entry(value: float) -> Product:
    """Right but for one entry of the last shape."""

    def product(one: Tensor, other: Tensor) -> Tensor:
        found = ones(one, other)
        if tuple(one.shape) == products.SHAPES[-1][:2]:
            found[3, 5] = value
        return found

    return product


def test_right_products_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SHAPES", ((3, 8192, 5), (2, 65536, 4)))
    assert wrong_product(CPU) is None


@pytest.mark.parametrize("value", [0.5, 2.0, torch.inf, -torch.inf, torch.nan, 0.0])
@pytest.mark.parametrize("share,said", [
    ("20", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE is 20 here, with which cuBLAS does so - unset it"),
    (None, "take such a limit off; without one the GPU or its libraries are at fault"),
])
def test_one_wrong_entry_is_found(
    value: float, share: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "product", one_entry(value))
    monkeypatch.delenv(SHARE, raising=False)
    if share is not None:
        monkeypatch.setenv(SHARE, share)
    found = wrong_product(CPU)
    assert found is not None
    assert "sums of 512 terms, by 8192 × 512 and 512 × 1152 in float32, are off by up to" in found
    assert said in found


def test_a_gpu_with_wrong_products_is_refused_and_a_cpu_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "wrong_product", lambda device: f"products on {device} are wrong")
    require_products(CPU)
    with pytest.raises(RecipeError, match="^train.device: products on cuda are wrong$"):
        require_products(GPU)


def test_a_deterministic_run_has_its_workspace_before_the_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def tried(device: torch.device) -> None:
        seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))

    monkeypatch.setattr(products, "wrong_product", tried)
    require_products(GPU)
    require_products(GPU, deterministic=True)
    assert seen == [None, ":4096:8"]
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def out_of_memory(device: torch.device) -> None:
    raise torch.OutOfMemoryError("no room\nfor it")


@pytest.mark.parametrize("tried,said", [
    (lambda device: None, ""),
    (lambda device: "sums are off", "; sums are off"),
    (out_of_memory, "; products could not be tried (no room)"),
])
def test_the_doctor_says_so(
    tried: Callable[[torch.device], str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "wrong_product", tried)
    assert doctor._products(GPU) == said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_products_of_a_whole_gpu_are_right() -> None:
    assert wrong_product(GPU) is None
