"""The bytes of each component are those of the weights file, integers of compressed maps among them."""

from __future__ import annotations

from typing import Any

import torch

from muse_core.report.contents import parameters_of
from muse_core.training.preview import layer_rows


def test_bytes_by_component_are_all_that_a_weights_file_holds(table: Any, prepare: Any) -> None:
    setup = prepare(table())
    model = setup.model
    before = {row["component"]: row for row in parameters_of(setup)}
    for row in before.values():
        assert row["bytes"] == 4 * row["parameters"], row
    layer = model.get_submodule(next(name for name, *_ in layer_rows(setup) if name.startswith("blocks.")))
    layer.register_buffer("integers", torch.zeros(100, 7, dtype=torch.int8))
    layer.register_buffer("made_anew", torch.zeros(9), persistent=False)
    after = {row["component"]: row for row in parameters_of(setup)}
    grown = [name for name in after if after[name]["bytes"] != before[name]["bytes"]]
    assert len(grown) == 1 and after[grown[0]]["bytes"] == before[grown[0]]["bytes"] + 700
    assert grown[0] not in ("embedding", "norm and head")
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert sum(row["bytes"] for row in after.values()) == held
