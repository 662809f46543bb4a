"""Muon: what the Newton-Schulz steps make of a matrix, and torch's own optimiser in bf16."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.training import update_rules


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_singular_vectors_stay_and_values_become_nearly_one(rows, columns, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    least = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(size, least, generator=generator, dtype=torch.float64))[0]
        for size in (rows, columns)
    )
    values = 1 - 0.9 * torch.rand(least, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update_rules, "computes_bf16", lambda device: False)
        core = left.T @ update_rules.newton_schulz(scale * left @ values.diag() @ right.T) @ right
    assert 0.65 < core.diagonal().min() and core.diagonal().max() < 1.2
    torch.testing.assert_close(core, core.diagonal().diag(), rtol=0, atol=1e-9)


def test_nothing_stays_nothing():
    """As the gradient of experts that no token has reached."""
    for shape in ((3, 2), (2, 2, 3)):
        assert torch.equal(update_rules.newton_schulz(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (8, 8)])
def test_in_bf16_it_is_the_optimiser_of_torch(monkeypatch, shape):
    monkeypatch.setattr(update_rules, "computes_bf16", lambda device: True)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    steppers = [
        made([parameter], lr=0.02, momentum=0.9, weight_decay=0.1)
        for made, parameter in ((update_rules.Muon, ours), (torch.optim.Muon, theirs))
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for stepper in steppers:
            stepper.step()
    assert torch.equal(ours, theirs) and not torch.equal(ours, start)


def test_the_precision_follows_the_processor(monkeypatch):
    """In fp32 the result is not rounded to bf16 numbers."""
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(update_rules, "computes_bf16", lambda device: False)
    single = update_rules.newton_schulz(x)
    assert single.dtype == torch.float32 and not torch.equal(single, single.bfloat16().float())
    monkeypatch.setattr(update_rules, "computes_bf16", lambda device: True)
    half = update_rules.newton_schulz(x)
    assert torch.equal(half, half.bfloat16().float())
    torch.testing.assert_close(half, single, rtol=0, atol=0.05)


@pytest.mark.parametrize("half", [True, False])
def test_matrices_of_one_shape_are_updated_as_they_are_alone(monkeypatch, half):
    monkeypatch.setattr(update_rules, "computes_bf16", lambda device: half)
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 12), (12, 8), (8, 12), (8, 8), *[(8, 12)] * update_rules.TOGETHER, (3, 5)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    together, alone = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    rest = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    steppers = [update_rules.Muon(together, **rest), *(update_rules.Muon([one], **rest) for one in alone)]
    for step in range(2):
        for number, (one, other) in enumerate(zip(together, alone, strict=True)):
            one.grad = other.grad = None if number == step else torch.randn(one.shape, generator=generator)
        for stepper in steppers:
            stepper.step()
    assert len(list(update_rules.bundles(together, update_rules.by_torch))) == (4 if half else len(shapes) - 1)
    for one, other, start in zip(together, alone, starts, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, start)


def test_a_gpu_takes_as_many_of_one_shape_as_its_memory_is_to_hold():
    """By tensors without memory: what is no CPU's is bundled alike."""
    side = int((update_rules.NUMBERS // 4) ** 0.5)
    shapes = [(side, side)] * 6 + [(8, 12), (2 * side, 4 * side), (8, 12), (12, 8)]
    matrices = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    for matrix in matrices[:-1]:
        matrix.grad = torch.empty_like(matrix)
    found = [[tuple(matrix.shape) for matrix in some] for some in update_rules.bundles(matrices, update_rules.by_torch)]
    assert found == [[(side, side)] * 4, [(side, side)] * 2, [(8, 12)] * 2, [(2 * side, 4 * side)]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_matrices_together_are_near_those_alone():
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in [(48, 96), (96, 48), (48, 96), (96, 48), (48, 48)]]
    found = []
    for most in (1, 8):
        parameters = [torch.nn.Parameter(start.cuda()) for start in starts]
        stepper = update_rules.Muon(
            parameters, lr=0.02, momentum=0.9, weight_decay=0.1, together=lambda matrix, most=most: most
        )
        drawn = torch.Generator().manual_seed(1)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=drawn).cuda()
            stepper.step()
        found.append(parameters)
    for start, alone, with_others in zip(starts, *found, strict=True):
        moved = (alone.cpu() - start).norm()
        assert moved > 0.1 and (alone - with_others).norm().cpu() < 0.02 * moved


@pytest.mark.parametrize("device,half,expected", [
    ("cpu", False, "native"), ("cpu", True, "core"), ("cuda", False, "core"), (None, False, "core"),
])
def test_a_kernel_backend_orthogonalises_where_a_cpu_computes_in_fp32(
    device, half, expected, prepare, table, monkeypatch
):
    monkeypatch.setattr(update_rules, "computes_bf16", lambda device: half)
    kernels = prepare(table()).kernels
    kernels.device = device
    found, together = update_rules.orthogonalization(None if device is None else kernels)
    if expected == "core":
        assert found is update_rules.newton_schulz and together is update_rules.by_torch
        assert "newton_schulz" not in kernels.selections
        return
    assert kernels.selections["newton_schulz"].backend == "native"
    assert together(torch.empty(192, 192)) == update_rules.NUMBERS // 192**2
    x = torch.randn(3, 20, 48, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        plain = torch.stack([update_rules.newton_schulz(one.to(dtype)) for one in x])
        ours = found(x.to(dtype))
        assert ours.dtype == dtype and 0 < (ours - plain).norm() < tolerance * plain.norm()


def test_without_a_backend_that_has_it_the_core_orthogonalises(prepare, table, monkeypatch):
    monkeypatch.setattr(update_rules, "computes_bf16", lambda device: False)
    kernels = prepare(table()).kernels
    kernels.backends = [(name, one) for name, one in kernels.backends if name != "native"]
    assert update_rules.orthogonalization(kernels) == (update_rules.newton_schulz, update_rules.by_torch)
    assert kernels.selections["newton_schulz"].backend == "core"
