"""One call over the whole sequence, calls over pieces and calls token by token agree exactly."""

from __future__ import annotations

import pytest
import torch

from muse_core.testing.cases import Case
from muse_core.testing.layer_suite.base import FAR, LayerBase, output_tensors, run, run_in_pieces
from muse_core.testing.modules import gradients_of, weighted
from muse_core.testing.sequences import (
    ROWS_AND_TOKENS,
    Sequence,
    assert_close,
    assert_same_state,
    cuts,
    from_checkpoint,
    leaves,
    mapped,
)

PIECES = {
    "stepwise": (1,),
    "uneven": (5, 1, 2),
    "two": (13,),
    "periods": (8,),
}


LONG_PIECES = (70, 2)
"""More tokens than a chunk of 64, then two at a time from inside the next."""


class LayerStreaming(LayerBase):
    @pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
    @pytest.mark.parametrize("sizes", PIECES.values(), ids=PIECES.keys())
    def test_pieces_give_what_the_whole_gives(self, case: Case, sizes: tuple[int, ...], documents: bool) -> None:
        self.check_pieces(case, self.sequence(case, documents=documents), sizes)

    @pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
    def test_pieces_of_a_long_row_give_what_the_whole_gives(self, case: Case, documents: bool) -> None:
        """Over more tokens than a chunk or a block of a kernel has, from whose inside the second call continues."""
        self.check_pieces(case, self.sequence(case, documents=documents, length=FAR + 3), LONG_PIECES)

    def check_pieces(self, case: Case, sequence: Sequence, sizes: tuple[int, ...]) -> None:
        """Calls over pieces of these sizes, and what follows them, give what one call gives."""
        layer, period, length = self.lively(case).eval(), self.period(case), sequence.length
        pieces = list(cuts(length, sizes))
        with torch.no_grad():
            whole = run(layer, sequence)
            outputs, state = run_in_pieces(layer, sequence, pieces, period)
            for name, value in output_tensors(whole).items():
                assert_close(outputs[name], value, f"{name} in pieces of {sizes}", axes=ROWS_AND_TOKENS)
            following = self.sequence(case, seed=9).piece(0, 3)
            start = length % period if period else 0
            following = following.__class__(
                x=following.x, signals=following.signals,
                tokens=following.tokens._replace(positions=following.tokens.positions + length, offset=start),
            )
            expected, actual = run(layer, following, whole.state), run(layer, following, from_checkpoint(state))
        assert_close(actual.update, expected.update, f"what follows pieces of {sizes} and a checkpoint",
                     axes=ROWS_AND_TOKENS)

    def test_tokens_are_taken_back_bit_by_bit(self, case: Case) -> None:
        """A state is a value: going back to one gives the same bits, however many tokens were read since."""
        layer, period, start = self.lively(case).eval(), self.period(case), self.length // 2
        sequence = self.sequence(case)
        with torch.no_grad():
            kept = run(layer, sequence.piece(0, start, period=period)).state
            copy = mapped(torch.clone, kept)
            for count in range(1, 9):
                runs = []
                for _ in range(2):
                    state, outputs = kept, {}
                    for token in range(start, start + count):
                        step = run(layer, sequence.piece(token, token + 1, period=period), state)
                        state = step.state
                        outputs |= {f"{name} of token {token}": x for name, x in output_tensors(step).items()}
                    runs.append(outputs | leaves(state))
                    assert_same_state(kept, copy, f"the state that {count} tokens were read from", within=0.0)
                for name, value in runs[0].items():
                    assert_close(runs[1][name], value, f"{name} after {count} tokens were taken back", within=0.0)

    @pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
    def test_gradients_through_pieces_are_those_of_the_whole(self, case: Case, documents: bool) -> None:
        self.check_gradients(case, self.length, (5, 1, 2), documents)

    @pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
    def test_gradients_through_pieces_of_a_long_row_are_those_of_the_whole(self, case: Case, documents: bool) -> None:
        self.check_gradients(case, FAR + 3, LONG_PIECES, documents)

    def check_gradients(self, case: Case, length: int, sizes: tuple[int, ...], documents: bool) -> None:
        """Of x and of every parameter, through calls over pieces of these sizes and through one."""
        layer = self.lively(case).eval()
        found = []
        for pieces in ([(0, length)], list(cuts(length, sizes))):
            sequence = self.sequence(case, documents=documents, length=length)
            x = sequence.x.requires_grad_()
            outputs, _ = run_in_pieces(layer, sequence, pieces, self.period(case))
            total = weighted(outputs)
            if not total.requires_grad:
                pytest.skip("nothing to train")
            to_x = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)[0]
            found.append({"x": to_x, **gradients_of(total, layer)})
        whole, pieced = found
        for name, gradient in whole.items():
            other = pieced[name]
            assert (gradient is None) == (other is None), f"the gradient of {name} reaches only one of both"
            if gradient is not None and other is not None:
                axes = ROWS_AND_TOKENS if name == "x" else ()
                assert_close(other, gradient, f"gradient of {name} in pieces of {sizes}", within=1e-9, axes=axes)
