"""M4: a batch whose update ruins the weights costs at most one rollback, also when the run is killed on the way.

Killed means: an exception that nothing handles, at points between which everything is already on the disk or not yet.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from muse_core import fault_injection
from muse_core.selftest.promises.runs import StopAfter, events, loop_of, losses

pytestmark = pytest.mark.promise("M4")

POISONED, END = 347, 400


class Killed(BaseException):
    """The end of a process."""


def poison(loop, kill):
    """A plan: the update after reading one certain batch adds noise to every weight. ``kill``: point of death."""
    wanted = loop.data.batch(POISONED).inputs
    reading = {"poison": False}

    def read(batch):
        reading["poison"] = torch.equal(batch.inputs, wanted)
        return batch

    def ruin(model):
        if reading["poison"]:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for weight in model.parameters():
                    weight += 0.3 * torch.randn(weight.shape, generator=generator)
        return model

    def die(value):
        raise Killed

    return {"batch": read, "post_step": ruin} | ({kill: die} if kill else {})


@pytest.mark.parametrize("kill", [None, "restore", "rollback"], ids=["undisturbed", "deciding", "decided"])
def test_the_run_ends_after_one_rollback(trained, tmp_path, trial, kill):
    source, recipe = trained
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    if kill:
        with loop_of(folder, recipe, StopAfter(1000)) as loop, fault_injection.installed(poison(loop, kill)):
            with pytest.raises(Killed):
                loop.run()
        assert len(events(folder, "incident")) == (kill == "rollback")
    with loop_of(folder, recipe, StopAfter(1000)) as loop, fault_injection.installed(poison(loop, None)):
        loop.run()
        assert loop.state.at.step == END
    (incident,) = events(folder, "incident")
    first, end = incident["data"]
    assert first <= POISONED < end
    assert max(value for step, value in losses(folder).items() if step > POISONED) < losses(folder)[1]
    trial.say("one rollback, the poisoned batch passed over, also when killed on the way")
