"""What compiled code computes under the options that training sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from muse_core.comparison.cost import training_step
from muse_core.model.precision import choose_precision
from muse_core.parallel.one import ONE
from muse_core.training import compilation
from muse_core.training.compilation import compiler_options
from muse_core.training.forward import make_forward
from muse_core.training.objectives import NextToken


@pytest.mark.filterwarnings("ignore")
def test_a_transposed_bf16_matrix_that_is_used_twice_is_read_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in gradients of keys and decays. Two tiles of 32 by 32: with AVX-512 most of it is read wrongly."""
    from torch._inductor import config

    monkeypatch.setattr(config, "cpp_cache_precompile_headers", False, raising=False)  # one kernel: they take longer

    def twice(x: Tensor, y: Tensor) -> Tensor:
        return y * x.t() + x.t()

    x, y = torch.randn(32, 64).bfloat16(), torch.randn(64, 32)
    found = torch.compile(twice, dynamic=False, options=compiler_options(True))(x, y)
    torch.testing.assert_close(found, twice(x, y))


def test_only_half_precision_pays_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, half, found in (("AVX512", True, 256), ("AVX512", False, None), ("AVX2", True, None)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda told=capability: told)
        assert (compiler_options(half) or {}).get("cpp.simdlen") == found


@pytest.mark.parametrize(("precision", "half"), [("fp32", False), ("bf16", True)])
@pytest.mark.parametrize("wanted", [True, "blocks"])
def test_the_precision_of_a_run_decides(
    table: Any, prepare: Any, monkeypatch: pytest.MonkeyPatch, wanted: Any, precision: str, half: bool
) -> None:
    """Of its steps as of those that are timed for its cost."""
    told: list[bool] = []
    monkeypatch.setattr(compilation, "compiler_options", lambda half: told.append(half))
    setup = prepare(table(train={"compile": wanted, "precision": precision}))
    make_forward(setup.model, NextToken(), setup.recipe, ONE)
    assert set(told) == {half}
    told.clear()
    setup = prepare(table(train={"compile": wanted, "precision": precision}))
    training_step(setup.model, setup.recipe, choose_precision(torch.device("cpu"), precision), rows=1, length=4)
    assert set(told) == {half}
