"""The output at a token depends on tokens up to it, of its own row and document, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import State
from muse_core.model.seeding import set_seed
from muse_core.testing.cases import Case
from muse_core.testing.layer_suite.base import FAR, LayerBase, output_tensors, run
from muse_core.testing.sequences import (
    ROWS_AND_TOKENS,
    Sequence,
    assert_close,
    assert_finite,
    document_starts,
    make_tokens,
    tokens_on,
)

PERTURBATION = 1e3
TOLERANCE = 1e-9


class Way(NamedTuple):
    """A way in which the loop, an evaluation or a generation calls a layer."""

    name: str
    training: bool = False
    """In training mode with gradients enabled; otherwise in evaluation mode without."""
    resets: str = "none"
    """none: no tensor; false: a tensor that marks no start; inside: documents start at different tokens of each row."""
    carried: bool = False
    """From the state that a first call returned."""

    @property
    def thorough(self) -> bool:
        """Whether every edge is tried, not only the middle and the end."""
        return self.resets == "none" and not self.carried


WAYS = (
    Way("eval"),
    Way("train", training=True),
    Way("eval, resets all False", resets="false"),
    Way("train, documents start inside", training=True, resets="inside"),
    Way("eval, documents start inside", resets="inside"),
    Way("train, carried state", training=True, resets="false", carried=True),
)

FAR_WAYS = (
    Way("eval"),
    Way("train, documents start inside", training=True, resets="inside"),
    Way("eval, documents start inside", resets="inside"),
    Way("eval, carried state", resets="false", carried=True),
)
"""Those of a long sequence."""


class LayerCausality(LayerBase):
    def edges(self, case: Case) -> list[int]:
        """Tokens that are perturbed: both ends, the middle, and either side of the period's edges."""
        period = self.period(case) or 8
        chosen = {0, self.length // 2, self.length - 1, period - 1, period, period + 1, 2 * period}
        return sorted(token for token in chosen if 0 <= token < self.length)

    @pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
    def test_a_large_change_reaches_no_earlier_token_and_no_other_row(self, case: Case, way: Way) -> None:
        layer, sequence, state = self.called(case, way)
        tokens = self.edges(case) if way.thorough else [self.length // 2, self.length - 1]
        base = self.reference(layer, sequence, state, way)
        for what, token, changed in self.perturbations(tokens, sequence):
            for name, value in self.observe(layer, changed, state, way).items():
                self.unaffected(name, value, base[name], what, token, way)

    def test_a_large_change_far_ahead_reaches_no_earlier_token(self, case: Case) -> None:
        """Also over more tokens than a window or a block of a kernel has, and after many periods."""
        way = WAYS[1]
        layer, sequence, state = self.called(case, way, length=FAR + 3)
        base = self.reference(layer, sequence, state, way)
        for what, token, changed in self.perturbations([FAR // 2 + 1, FAR + 2], sequence):
            for name, value in self.observe(layer, changed, state, way).items():
                self.unaffected(name, value, base[name], what, token, way)

    @pytest.mark.parametrize("way", FAR_WAYS, ids=[way.name for way in FAR_WAYS])
    def test_a_change_of_all_that_follows_reaches_no_earlier_token(self, case: Case, way: Way) -> None:
        """Over as many tokens, whichever later one an output looks at. The changes are smaller, for the writes of many
        large ones overflow."""
        layer, sequence, state = self.called(case, way, length=FAR + 3)
        base, token = self.reference(layer, sequence, state, way), FAR // 2 + 1
        generator = torch.Generator().manual_seed(7)
        changed = attrs.evolve(
            sequence, x=sequence.x.clone(), signals={key: value.clone() for key, value in sequence.signals.items()}
        )
        for target in (changed.x, *changed.signals.values()):
            noise = torch.randn(target[:, token:].shape, generator=generator, dtype=torch.float64)
            target[:, token:] += noise.to(target)
        for name, value in self.observe(layer, changed, state, way).items():
            what = f"{name} before token {token} depends on later ones"
            self.unmoved(value[:, :token], base[name][:, :token], what, way, ROWS_AND_TOKENS)

    def called(self, case: Case, way: Way, *, length: int | None = None) -> tuple[nn.Module, Sequence, State]:
        """A lively layer, a sequence and the state to call it with in this way."""
        layer, period = self.lively(case).train(way.training), self.period(case)
        sequence = self.sequence(case, documents=way.resets == "inside", length=length or self.length)
        tokens = sequence.tokens
        if way.resets == "false":
            tokens = tokens._replace(resets=torch.zeros_like(tokens.positions, dtype=torch.bool))
        state: State = None
        if way.carried:
            with torch.no_grad():
                state = run(layer, self.sequence(case, seed=3)).state
            tokens = tokens._replace(
                positions=tokens.positions + self.length, offset=self.length % period if period else 0
            )
        return layer, attrs.evolve(sequence, tokens=tokens), state

    def unaffected(self, name: str, value: Tensor, base: Tensor, what: str, token: int, way: Way) -> None:
        """An output (B, N, …) is what it was but for the changed row from the changed token on."""
        self.unmoved(value[1, :token], base[1, :token], f"{name} before {what} depends on it", way, ("token",))
        for row in (0, 2):
            self.unmoved(value[row], base[row], f"{name} of row {row} depends on row 1, by {what}", way, ("token",))

    def unmoved(self, actual: Tensor, expected: Tensor, what: str, way: Way, axes: tuple[str, ...]) -> None:
        assert_close(actual, expected, f"not causal: {what} ({way.name})", within=TOLERANCE, axes=axes)

    def test_a_large_change_does_reach_its_own_token(self, case: Case) -> None:
        """Without this the tests beside it would pass for a layer that ignores x."""
        layer, sequence = self.lively(case).eval(), self.sequence(case)
        token = self.length // 2
        changed = attrs.evolve(sequence, x=sequence.x.clone())
        changed.x[1, token] += PERTURBATION
        moved = max(
            (value[1, token:] - base[1, token:]).abs().max().item()
            for value, base in zip(
                self.observe(layer, changed, None, WAYS[0]).values(),
                self.reference(layer, sequence, None, WAYS[0]).values(),
            )
        )
        assert moved > TOLERANCE or self.ignores_x(case), "the layer ignores x"

    def ignores_x(self, case: Case) -> bool:
        """Whether what the layer adds is meant not to depend on the stream, such as positions: its options class says
        so by ``ignores_stream = True``."""
        return getattr(self.options_of(case), "ignores_stream", False) or self.adds_nothing(case)

    @pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
    def test_gradients_of_earlier_outputs_are_exactly_zero(self, case: Case, way: Way) -> None:
        layer, sequence, state = self.called(case, way)
        x = sequence.x.requires_grad_()
        signals = [value.requires_grad_() for value in sequence.signals.values()]
        set_seed(0)
        outputs = output_tensors(run(layer, sequence, state))
        for name, value in outputs.items():
            assert_finite(value, f"the {name}")
        for token in sorted({*self.edges(case), *document_starts(1, self.length)} - {0}):
            early = sum((value[1, :token] ** 2).sum() for value in outputs.values() if value.requires_grad)
            if not isinstance(early, Tensor):
                continue
            gradients = torch.autograd.grad(early, [x, *signals], retain_graph=True, allow_unused=True)
            for gradient in gradients:
                if gradient is not None:
                    assert_finite(gradient, f"the gradient of outputs before token {token}")
                    assert not gradient[1, token:].any(), (
                        f"not causal: outputs before token {token} have a gradient to it or later ones ({way.name})"
                    )
                    assert not gradient[[0, 2]].any(), (
                        f"not causal: outputs before token {token} have a gradient to other rows ({way.name})"
                    )

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
                        what = f"{name} of the document at tokens {start} to {stop} of row {row}"
                        part = together[name][row, start:stop]
                        assert_close(part, value[0], what, axes=("its token",))

    def document(self, case: Case, sequence: Sequence, row: int, start: int, stop: int) -> Sequence:
        """One document of a row as if nothing stood before it."""
        period = self.period(case)
        part = sequence.rows([row]).piece(start, stop, period=period)
        tokens = tokens_on(make_tokens(1, stop - start), self.device)._replace(offset=start % period if period else 0)
        return Sequence(x=part.x, signals=part.signals, tokens=tokens)

    def test_rows_can_be_permuted(self, case: Case) -> None:
        layer, sequence = self.lively(case).eval(), self.sequence(case, documents=True)
        order = [2, 0, 1]
        base = self.observe(layer, sequence, None, WAYS[0])
        permuted = self.observe(layer, sequence.rows(order), None, WAYS[0])
        for name, value in base.items():
            assert_close(permuted[name], value[order], f"{name} of permuted rows", axes=ROWS_AND_TOKENS)

    def observe(self, layer: nn.Module, sequence: Sequence, state: State, way: Way) -> dict[str, Tensor]:
        """Its outputs, with gradients enabled as they are in this way of calling it."""
        set_seed(0)  # what a layer draws in training must not look like a leak
        with torch.set_grad_enabled(way.training):
            outputs = output_tensors(run(layer, sequence, state))
        return {name: value.detach() for name, value in outputs.items()}

    def reference(self, layer: nn.Module, sequence: Sequence, state: State, way: Way) -> dict[str, Tensor]:
        """What others are compared with: ``observe`` of the inputs as they are, whose outputs are finite numbers."""
        outputs = self.observe(layer, sequence, state, way)
        for name, value in outputs.items():
            assert_finite(value, f"the {name}")
        return outputs

    def perturbations(self, tokens: list[int], sequence: Sequence) -> Iterator[tuple[str, int, Sequence]]:
        """(what, token, sequence) with one of these tokens of row 1 changed, in x or in one signal."""
        generator = torch.Generator().manual_seed(7)
        for token in tokens:
            for name in (None, *sequence.signals):
                changed = attrs.evolve(
                    sequence,
                    x=sequence.x.clone(),
                    signals={key: value.clone() for key, value in sequence.signals.items()},
                )
                target = changed.x if name is None else changed.signals[name]
                noise = torch.randn(target[1, token].shape, generator=generator, dtype=torch.float64)
                target[1, token] += PERTURBATION * noise.to(target)
                yield f"the change of {name or 'x'} at token {token}", token, changed
