"""What distillation minimises."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from muse_koopman.compress import Compress
from muse_koopman.distil import Imitate, held_out_drift
from muse_koopman.maps import replace
from muse_koopman.measure import EDGE, ENERGIES, drift
from muse_koopman.options import CompressOptions, DistilOptions
from torch.nn import functional as F

import muse_core
from muse_core.data.batches import columns, rows
from muse_core.model.states import leaves

OPTIONS = DistilOptions(teacher="run", temperature=2.0, imitation=0.7, spectral=0.3)


def test_a_student_that_is_its_teacher_has_the_cross_entropy_alone(small: Path) -> None:
    opened = muse_core.load(small)
    result = Imitate(opened.model, OPTIONS)(copy.deepcopy(opened.model), opened.batch(0), None)
    # The student's pass keeps gradients and may take other kernels than the teacher's: equal to rounding.
    assert result.losses["imitation"].abs() < 1e-3 and float(result.losses["spectral"]) < 1e-3
    assert float(result.total.detach()) == pytest.approx(float(result.losses["cross_entropy"]), abs=1e-3)


def test_the_terms_are_what_they_are_called(small: Path) -> None:
    opened, other = muse_core.load(small), muse_core.build(small / "recipe.toml", ["seed=5"])
    batch = rows(opened.batch(0), 0, 2)
    result = Imitate(opened.model, OPTIONS)(other.model, batch, None)
    with torch.no_grad():
        found, due = (
            F.log_softmax(model.logits(model(batch.inputs, None, batch.tokens).hidden) / 2.0, dim=-1)
            for model in (other.model, opened.model)
        )
    divergence = (due.exp() * (due - found)).sum(-1)[batch.loss_mask].sum()
    assert float(result.losses["imitation"]) == pytest.approx(0.7 * 4 * float(divergence), rel=1e-4)
    drift, count = float(result.metrics["koopman/spectral_drift"]), int(batch.loss_mask.sum())
    assert drift > 0.01 and float(result.losses["spectral"]) == pytest.approx(0.3 * drift * count, rel=1e-5)
    whole = sum(float(value) for value in result.losses.values())
    assert float(result.total.detach()) == pytest.approx(whole, rel=1e-5)
    (gradient,) = torch.autograd.grad(result.total, [other.model.blocks[0].resolvent.dynamics.hopping])
    assert torch.isfinite(gradient).all() and gradient.any()


def test_teacher_and_student_carry_states_of_their_own(small: Path) -> None:
    """As with data.order = "streams": two halves of the rows, one after the other, say what the whole rows say."""
    opened, other = muse_core.load(small), muse_core.build(small / "recipe.toml", ["seed=5"])
    batch = rows(opened.batch(0), 0, 2)
    batch = batch._replace(tokens=batch.tokens._replace(resets=None))
    objective = Imitate(opened.model, OPTIONS)
    whole, first = objective(other.model, batch, None), objective(other.model, columns(batch, 0, 2), None)
    second = objective(other.model, columns(batch, 1, 2), first.state)
    for name in ("cross_entropy", "imitation"):
        halves = float(first.losses[name]) + float(second.losses[name])
        assert halves == pytest.approx(float(whole.losses[name]), rel=1e-4), name
    told = objective.state_after(other.model, batch.inputs, None, batch.tokens)
    due = dict(leaves(whole.state))
    assert due.keys() == dict(leaves(told)).keys()
    for name, value in leaves(told):
        torch.testing.assert_close(value, due[name], rtol=1e-4, atol=1e-5)


def test_drift_is_zero_from_a_run_to_itself_and_large_to_an_untrained_model(small: Path) -> None:
    opened, other = muse_core.load(small), muse_core.build(small / "recipe.toml", ["seed=5"])
    assert held_out_drift(other.setup, opened.model, opened.model) == 0.0
    assert held_out_drift(other.setup, other.model, opened.model) > 0.05


def test_drift_grows_with_epsilon(small: Path) -> None:
    """Of two blocks, since the spectra of the second one's resolvent hear what the maps before it lose; with V of the
    hopping's size, since this model is untrained and a small V hardly hears its inputs."""
    changed = ["model.depth=2", 'model.block[0].potential=[{ use = "non-hermitian", scale = 1.0 }]']
    opened, other = (muse_core.build(small / "recipe.toml", changed) for _ in range(2))
    found = []
    for ratio in (1.7, 4.0):
        other.model.load_state_dict(opened.model.state_dict())
        forms, how = Compress(CompressOptions(method="koopman", ratio=ratio, tokens=4096), other.setup).made()
        kept = {form.name: other.model.get_submodule(form.name) for form in forms if form.module is not None}
        for form in forms:
            if form.module is not None:
                replace(other.model, form.name, form.module)
        found.append((how["epsilon"], held_out_drift(other.setup, other.model, opened.model)))
        for name, module in kept.items():
            replace(other.model, name, module)
    epsilons, drifts = zip(*found)
    assert epsilons[0] < epsilons[1]
    assert 0 < drifts[0] < drifts[1]


def test_imitation_of_a_float64_model_is_float64(small: Path) -> None:
    """A teacher is at no distance from itself, to the rounding of the precision that it has."""
    opened = muse_core.load(small)
    model, batch = opened.model.double(), rows(opened.batch(0), 0, 2)
    with torch.no_grad():
        found = Imitate(model, OPTIONS).divergence(
            model, *(model(batch.inputs, None, batch.tokens).hidden + shift for shift in (0.0, 1e-8)), batch
        )
        hidden = model(batch.inputs, None, batch.tokens).hidden
        student, teacher = (
            F.log_softmax(model.logits(hidden + shift) / 2.0, dim=-1) for shift in (0.0, 1e-8)
        )
    due = 4 * (teacher.exp() * (teacher - student)).sum(-1)[batch.loss_mask].sum()
    assert found.dtype == torch.float64 and float(found) == pytest.approx(float(due), rel=1e-6, abs=1e-15)


def test_layers_that_one_of_two_models_leaves_out_have_no_distance() -> None:
    """As where all tokens leave a student early."""
    first = {name: torch.tensor([[0.5, 0.5, 0.0]]) for name in ("blocks.0.resolvent", "blocks.1.resolvent")}
    second = {"blocks.0.resolvent": torch.tensor([[0.0, 0.5, 0.5]])}
    step = 2 * EDGE / (ENERGIES - 1)
    assert float(drift(first, second)) == float(drift(second, first)) == step
    assert drift(first, {}) is None
