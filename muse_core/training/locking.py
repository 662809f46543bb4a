"""The lock of a run as it stands after set-up."""

from __future__ import annotations

import torch

from muse_core.evaluation.causality import TOLERANCES
from muse_core.recipe import Checked
from muse_core.recipe.lock import Lock, make_lock
from muse_core.training.setup import Setup


def lock_of(checked: Checked, setup: Setup) -> Lock:
    """Versions, digests, device and kernels that the numbers of this run depend on."""
    device = setup.precision.device
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    checked_on, dtype = setup.exact_check
    gate = {}
    if dtype != torch.float64:
        gate = {"device": checked_on.type, "precision": str(dtype), "tolerance": TOLERANCES[dtype]}
    return make_lock(
        checked,
        device=name,
        kernels=setup.kernels.choices,
        digests={"data": setup.corpus.digest, "tokenizer": setup.corpus.tokenizer.digest},
        causality_gate=gate,
    )
