"""The output at a token depends on tokens up to it, of its own row and document, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from muse_core.testing.cases import Case
from muse_core.testing.layer_suite.base import LayerBase, output_tensors, run
from muse_core.testing.sequences import Sequence, assert_close, document_starts, make_tokens

PERTURBATION = 1e3
TOLERANCE = 1e-9


class LayerCausality(LayerBase):
    def edges(self, case: Case) -> list[int]:
        """Tokens that are perturbed: both ends, the middle, and either side of the period's edges."""
        period = self.period(case) or 8
        chosen = {0, self.length // 2, self.length - 1, period - 1, period, period + 1, 2 * period}
        return sorted(token for token in chosen if 0 <= token < self.length)

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_a_large_change_reaches_no_earlier_token_and_no_other_row(self, case: Case, training: bool) -> None:
        layer, sequence = self.lively(case).train(training), self.sequence(case)
        base = self.observe(layer, sequence)
        for what, token, changed in self.perturbations(case, sequence):
            for name, value in self.observe(layer, changed).items():
                assert_close(value[1, :token], base[name][1, :token], f"{name} before {what}", within=TOLERANCE)
                assert_close(value[[0, 2]], base[name][[0, 2]], f"{name} in other rows than {what}", within=TOLERANCE)

    def test_a_large_change_does_reach_its_own_token(self, case: Case) -> None:
        """Without this the tests beside it would pass for a layer that ignores x."""
        layer, sequence = self.lively(case).eval(), self.sequence(case)
        token = self.length // 2
        changed = Sequence(x=sequence.x.clone(), signals=sequence.signals, tokens=sequence.tokens)
        changed.x[1, token] += PERTURBATION
        moved = max(
            (value[1, token:] - base[1, token:]).abs().max().item()
            for value, base in zip(self.observe(layer, changed).values(), self.observe(layer, sequence).values())
        )
        assert moved > TOLERANCE or self.ignores_x(case), "the layer ignores x"

    def ignores_x(self, case: Case) -> bool:
        """Whether what the layer adds is meant not to depend on the stream, such as positions: its options class says
        so by ``ignores_stream = True``."""
        return getattr(self.options_of(case), "ignores_stream", False) or self.adds_nothing(case)

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_gradients_of_earlier_outputs_are_exactly_zero(self, case: Case, training: bool) -> None:
        layer, sequence = self.lively(case).train(training), self.sequence(case)
        x = sequence.x.requires_grad_()
        signals = [value.requires_grad_() for value in sequence.signals.values()]
        torch.manual_seed(0)
        outputs = output_tensors(run(layer, sequence))
        for token in self.edges(case):
            early = sum((value[1, :token] ** 2).sum() for value in outputs.values() if value.requires_grad)
            if token == 0 or not isinstance(early, Tensor):
                continue
            gradients = torch.autograd.grad(early, [x, *signals], retain_graph=True, allow_unused=True)
            for gradient in gradients:
                if gradient is not None:
                    assert not gradient[1, token:].any(), f"outputs before token {token} have a gradient to later ones"
                    assert not gradient[[0, 2]].any(), f"outputs before token {token} have a gradient to other rows"

    def test_documents_are_separate(self, case: Case) -> None:
        """A row of several documents gives what each document gives alone, on the same absolute grid."""
        layer = self.lively(case).eval()
        sequence = self.sequence(case, documents=True)
        with torch.no_grad():
            together = output_tensors(run(layer, sequence))
            for row in range(self.batch):
                starts = sorted({0, *document_starts(row, self.length)})
                for start, stop in zip(starts, [*starts[1:], self.length]):
                    alone = output_tensors(run(layer, self.document(case, sequence, row, start, stop)))
                    for name, value in alone.items():
                        assert_close(together[name][row : row + 1, start:stop], value,
                                     f"{name} of the document at tokens {start} to {stop} of row {row}")

    def document(self, case: Case, sequence: Sequence, row: int, start: int, stop: int) -> Sequence:
        """One document of a row as if nothing stood before it."""
        period = self.period(case)
        part = sequence.rows([row]).piece(start, stop, period=period)
        tokens = make_tokens(1, stop - start)._replace(offset=start % period if period else 0)
        return Sequence(x=part.x, signals=part.signals, tokens=tokens)

    def test_rows_can_be_permuted(self, case: Case) -> None:
        layer, sequence = self.lively(case).eval(), self.sequence(case, documents=True)
        order = [2, 0, 1]
        base, permuted = self.observe(layer, sequence), self.observe(layer, sequence.rows(order))
        for name, value in base.items():
            assert_close(permuted[name], value[order], f"{name} of permuted rows")

    @torch.no_grad()
    def observe(self, layer: nn.Module, sequence: Sequence) -> dict[str, Tensor]:
        torch.manual_seed(0)  # what a layer draws in training must not look like a leak
        return output_tensors(run(layer, sequence))

    def perturbations(self, case: Case, sequence: Sequence) -> Iterator[tuple[str, int, Sequence]]:
        """(what, token, sequence) with one token of row 1 changed, in x or in one signal."""
        generator = torch.Generator().manual_seed(7)
        for token in self.edges(case):
            for name in (None, *sequence.signals):
                changed = Sequence(
                    x=sequence.x.clone(),
                    signals={key: value.clone() for key, value in sequence.signals.items()},
                    tokens=sequence.tokens,
                )
                target = changed.x if name is None else changed.signals[name]
                noise = torch.randn(target[1, token].shape, generator=generator, dtype=torch.float64)
                target[1, token] += PERTURBATION * noise
                yield f"the change of {name or 'x'} at token {token}", token, changed
