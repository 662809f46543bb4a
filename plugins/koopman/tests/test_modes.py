"""Maps fitted on state pairs and their modes, held to linear algebra."""

from __future__ import annotations

import pytest
import torch
from muse_koopman.modes import Modes, cutoff, fitted_map, relative_error, schur_modes, singular_modes
from muse_koopman.pairs import Moments

EIGENVALUES = torch.tensor([0.95, 0.5, -0.3, 0.02], dtype=torch.float64)
TURNS = ((0.9, 0.4), (0.6, 2.0), (0.1, 1.0))
"""Modulus and angle of conjugate pairs."""


def known_map() -> tuple[torch.Tensor, torch.Tensor]:
    """A (10, 10) that is not normal, and the moduli of its eigenvalues, descending."""
    blocks = [torch.tensor([[value]]) for value in EIGENVALUES]
    for modulus, angle in TURNS:
        turn = torch.tensor(angle, dtype=torch.float64)
        c, s = turn.cos(), turn.sin()
        blocks.append(modulus * torch.stack((torch.stack((c, -s)), torch.stack((s, c)))))
    diagonal = torch.block_diag(*blocks)
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    doubled = [modulus for modulus, _ in TURNS for _ in range(2)]
    moduli = torch.cat((EIGENVALUES.abs(), torch.tensor(doubled, dtype=torch.float64)))
    return change @ diagonal @ torch.linalg.inv(change), moduli.sort(descending=True).values


def pairs_of(matrix: torch.Tensor, count: int = 400, seed: int = 1) -> Moments:
    """Moments of inputs that are far from white."""
    generator = torch.Generator().manual_seed(seed)
    n = matrix.shape[1]
    x = torch.randn(count, n, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, n).double()
    moments = Moments.empty(*matrix.shape, device=torch.device("cpu"))
    moments.add(x[: count // 2], x[: count // 2] @ matrix.T)
    moments.add(x[count // 2 :], x[count // 2 :] @ matrix.T)
    return moments


def modes_of_known() -> tuple[Modes, torch.Tensor, torch.Tensor]:
    matrix, moduli = known_map()
    fitted, _ = fitted_map(pairs_of(matrix), 1e-14)
    return schur_modes(fitted), matrix, moduli


def test_a_map_of_known_spectrum_is_recovered_from_its_pairs() -> None:
    modes, matrix, moduli = modes_of_known()
    torch.testing.assert_close(modes.fitted, matrix, rtol=0, atol=1e-8)
    torch.testing.assert_close(modes.sizes, moduli, rtol=0, atol=1e-8)
    assert modes.pairs.sum() == len(TURNS)


def test_every_leading_subspace_is_invariant_and_holds_the_largest_modes() -> None:
    modes, matrix, moduli = modes_of_known()
    for rank in range(1, 11):
        whole = modes.whole(rank)
        basis = modes.basis[:, :whole]
        inside = matrix @ basis
        torch.testing.assert_close(basis @ (basis.T @ inside), inside, rtol=0, atol=1e-7)
        found = torch.linalg.eigvals(basis.T @ inside).abs().sort(descending=True).values
        torch.testing.assert_close(found, moduli[:whole], rtol=0, atol=1e-7)


def test_conjugate_pairs_are_never_parted() -> None:
    modes, _, moduli = modes_of_known()
    wholes = [modes.whole(rank) for rank in range(1, 11)]
    assert all(whole in (rank, rank - 1, rank + 1) and whole >= 1 for rank, whole in enumerate(wholes, 1))
    assert not any(whole < 10 and bool(modes.pairs[whole - 1]) for whole in wholes)
    assert sum(whole != rank for rank, whole in enumerate(wholes, 1)) == len(TURNS)


def test_a_form_in_ascending_order_is_turned_around() -> None:
    """LAPACK leaves a triangular matrix as it is, so that the exchanges alone put the largest first."""
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(9, 9, generator=generator, dtype=torch.float64).triu(1)
    matrix += torch.linspace(0.1, 0.9, 9, dtype=torch.float64).diag()
    matrix[7:, 7:] = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)  # a pair of modulus 1
    modes = schur_modes(matrix)
    due = torch.tensor([1.0, 1.0, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    torch.testing.assert_close(modes.sizes, due, rtol=0, atol=1e-9)
    assert modes.pairs.tolist() == [True] + 8 * [False]
    left, right = modes.factors(4)
    torch.testing.assert_close(left @ right @ modes.basis[:, :4], matrix @ modes.basis[:, :4], rtol=0, atol=1e-9)


def test_the_modes_that_stay_are_those_that_the_cutoff_keeps() -> None:
    modes, _, moduli = modes_of_known()
    distance = (moduli[0] / moduli).log()
    for epsilon in (0.3, 0.7, 1.0, 2.0, 5.0, 40.0):
        within = int((distance / distance.mean() <= 1.5 / epsilon).sum())  # χ(1/2) = 1/2
        assert modes.rank(epsilon) == modes.whole(max(1, within)), epsilon
    ranks = [modes.rank(0.2 * 1.1**step) for step in range(60)]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == 10 and ranks[-1] == 1


def test_the_cutoff_is_one_up_to_1_over_epsilon_and_zero_from_twice_that() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(cutoff(x, 0.5), torch.tensor([1, 1, 1, 0.5, 0, 0]).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (20, 8), (8, 20)])
def test_all_modes_give_the_map_to_rounding(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    fitted, regular = fitted_map(pairs_of(matrix), 1e-15)
    found = [singular_modes(fitted, regular), singular_modes(matrix)]
    if shape[0] == shape[1]:
        found.append(schur_modes(fitted))
    for modes in found:
        left, right = modes.factors(min(shape))
        torch.testing.assert_close(left @ right, matrix, rtol=0, atol=1e-9)
        assert abs(left.norm() - right.norm()) < 1e-9 * left.norm()


def test_whitened_modes_have_the_least_error_of_their_rank_on_the_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    moments = pairs_of(matrix)
    fitted, regular = fitted_map(moments, 1e-14)
    kinds = {"whitened": singular_modes(fitted, regular), "svd": singular_modes(matrix), "schur": schur_modes(fitted)}
    for rank in (2, 4, 7):
        errors = {}
        for kind, modes in kinds.items():
            left, right = modes.factors(rank)
            errors[kind] = relative_error(left @ right, moments)
        assert errors["whitened"] < 0.95 * min(errors["svd"], errors["schur"]), errors


def test_what_a_schur_form_leaves_out_acts_on_the_rest_alone() -> None:
    """(1 − Q_r Q_rᵀ) W = Q₂ T₂₂ Q₂ᵀ: states in the span that is kept are mapped without error."""
    modes, matrix, _ = modes_of_known()
    rank = modes.whole(5)
    left, right = modes.factors(rank)
    kept = modes.basis[:, :rank]
    torch.testing.assert_close(left @ right @ kept, matrix @ kept, rtol=0, atol=1e-7)


def test_the_error_on_pairs_is_that_of_the_states() -> None:
    generator = torch.Generator().manual_seed(4)
    matrix, other = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    x = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    moments = Moments.empty(6, 9, device=torch.device("cpu"))
    moments.add(x, x @ matrix.T)
    due = (x @ (matrix - other).T).norm() / (x @ matrix.T).norm()
    assert relative_error(other, moments) == pytest.approx(float(due), rel=1e-9)


def test_a_map_that_gives_zero_has_one_mode() -> None:
    assert singular_modes(torch.zeros(4, 4, dtype=torch.float64)).rank(1.0) >= 1
    assert schur_modes(torch.zeros(4, 4, dtype=torch.float64)).rank(1.0) >= 1
