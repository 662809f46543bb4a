"""The conformance suite of potentials."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.execution import DerivativeSuite
from muse_core.testing.modules import assert_reached, gradients_of, weighted
from muse_core.testing.sequences import Sequence, assert_close, cuts, make_tokens, random_sequence
from muse_core.testing.signals import needed_shapes

PERTURBATION = 1e3


class PotentialSuite(DerivativeSuite):
    """V and Γ ≥ 0 of shape (B, N, H), a function of each token and its signals; see ``contracts.Potential``."""

    kind = "potential"
    width = 16
    heads = 4
    length = 13

    def build(self, case: Case, **changes: Any) -> nn.Module:
        given = {"width": self.width, "heads": self.heads, "signals": self.signals(case)}
        module: nn.Module = super().build(case, **(given | changes))
        return module

    def signals(self, case: Case) -> dict[str, tuple[int, ...]]:
        options = resolve(case.kind, case.name, case.options, self.registry()).options
        return needed_shapes(options, self.registry(), self.width)

    def sequence(self, case: Case, dtype: torch.dtype = torch.float64) -> Sequence:
        return random_sequence(
            batch=3, length=self.length, width=self.width, signals=self.signals(case), documents=True, dtype=dtype
        )

    def outputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        return values(module, self.sequence(case, dtype))

    def inputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        sequence = self.sequence(case, dtype)
        return {"x": sequence.x} | sequence.signals

    def call(self, case: Case, module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        signals = {name: value for name, value in inputs.items() if name != "x"}
        tokens = make_tokens(3, self.length, documents=True)
        return values(module, Sequence(x=inputs["x"], signals=signals, tokens=tokens))

    def test_returns_energy_and_decay_by_head(self, case: Case) -> None:
        module, sequence = self.build(case), self.sequence(case, torch.float32)
        for name, value in values(module, sequence).items():
            assert value.shape == (3, self.length, self.heads), f"{name} is {tuple(value.shape)}, not (B, N, H)"
            assert value.dtype.itemsize >= 4 and not value.is_complex(), f"{name} is {value.dtype}"
            assert torch.isfinite(value).all(), f"{name} is not finite"

    def test_decay_is_never_negative(self, case: Case) -> None:
        sequence = self.sequence(case)
        extreme = Sequence(x=30 * sequence.x, signals=sequence.signals, tokens=sequence.tokens)
        for what in (sequence, extreme):
            assert (values(self.lively(case), what)["Γ"] >= 0).all(), "Γ < 0 would amplify"

    def test_a_token_sees_no_other_token(self, case: Case) -> None:
        """Potentials have no state, so what they read at a token must be that token's."""
        module, sequence = self.lively(case).eval(), self.sequence(case)
        base = values(module, sequence)
        for token in (0, 1, self.length // 2, self.length - 1):
            x = sequence.x.clone()
            x[1, token] += PERTURBATION
            moved = values(module, Sequence(x=x, signals=sequence.signals, tokens=sequence.tokens))
            others = torch.ones(3, self.length, dtype=torch.bool)
            others[1, token] = False
            for name, value in moved.items():
                assert_close(value[others], base[name][others], f"{name} away from the change at token {token}")

    def test_pieces_give_what_the_whole_gives(self, case: Case) -> None:
        module, sequence = self.lively(case).eval(), self.sequence(case)
        pieces = [values(module, sequence.piece(start, stop)) for start, stop in cuts(self.length, (4, 1))]
        for name, value in values(module, sequence).items():
            assert_close(torch.cat([piece[name] for piece in pieces], dim=1), value, f"{name} in pieces")

    def test_gradients_reach_every_parameter(self, case: Case) -> None:
        module = self.lively(case).train()
        assert_reached(gradients_of(weighted(values(module, self.sequence(case))), module))

    def test_stays_fp32_under_autocast(self, case: Case) -> None:
        module, sequence = self.build(case).eval(), self.sequence(case, torch.float32)
        expected = values(module, sequence)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = values(module, sequence.to(torch.bfloat16))
        for name, value in found.items():
            assert value.dtype == torch.float32, f"{name} is {value.dtype} under autocast"
            assert_close(value, expected[name], f"{name} under autocast", within=0.05)


def values(module: nn.Module, sequence: Sequence) -> dict[str, Tensor]:
    """V and Γ of a call."""
    energy, decay = module(sequence.x, dict(sequence.signals), sequence.tokens)
    return {"V": energy, "Γ": decay}
