"""No layer makes a tensor of Python numbers while it runs: on a GPU that is a copy from the host, which waits for all
work before it, and a recorded step (`train.cuda_graph`) refuses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from muse_core.testing.cases import installed, registered_cases
from muse_core.testing.layer_suite.base import run
from muse_core.testing.layers import LayerSuite, MemoryLayerSuite

COPIES = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
SUITES = {"layer": LayerSuite, "memory layer": MemoryLayerSuite}


class NoCopies(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        values = given[1:] if function is torch.Tensor.new_tensor else given[:1]
        assert function not in COPIES or isinstance(values[0], torch.Tensor), f"{function.__name__} of {values}"
        return function(*given, **(named or {}))


@pytest.mark.parametrize("kind", SUITES)
def test_a_step_makes_no_tensor_of_numbers(kind, tmp_path):
    suite, ran = SUITES[kind](), 0
    for case in registered_cases(installed(), kind, tmp_path):
        if case.derived or getattr(suite.options_of(case), "device_only", None):
            continue
        layer, sequence = suite.build(case).train(), suite.sequence(case, dtype=torch.float32)
        with NoCopies():
            run(layer, sequence)
        ran += 1
    assert ran > 5
