"""M5: a run that keeps diverging, whatever is tried, halts after three rollbacks with exit code 4."""

from __future__ import annotations

import shutil

import pytest
import torch

from muse_core import fault_injection
from muse_core.errors import Halted
from muse_core.selftest.promises.runs import StopAfter, events, loop_of

pytestmark = pytest.mark.promise("M5")


def test_it_halts_after_three_rollbacks_each_stronger_than_the_last(trained, tmp_path, trial):
    source, recipe = trained
    shutil.copytree(source, tmp_path / "run")
    generator = torch.Generator().manual_seed(trial.seed)
    with loop_of(tmp_path / "run", recipe, StopAfter(1000)) as loop:

        def climb(model):
            """From step 345 on every update makes the loss worse, however small the learning rate."""
            if loop.state.at.step >= 345:
                with torch.no_grad():
                    for weight in model.parameters():
                        weight += 0.05 * torch.randn(weight.shape, generator=generator)
            return model

        climbing = fault_injection.installed({"post_step": climb})
        with climbing, pytest.raises(Halted, match="3 rollbacks within 1000") as halted:
            loop.run()
    assert halted.value.exit_code == 4
    found = events(tmp_path / "run", "incident")
    assert [(one["rate"], one["reset_moments"]) for one in found] == [(1.0, False), (0.5, False), (0.5, True)]
    assert found[1]["target"] < found[0]["target"] or found[1]["generation"] != found[0]["generation"]
    widths = [one["data"][1] - one["data"][0] for one in found]
    assert widths[0] < widths[1] < widths[2]
    steps = [one["step"] for one in found]
    trial.say(f"halted after rollbacks at steps {', '.join(map(str, steps))}, exit code 4")
