"""The conformance suite of whole models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import ModelOutput, State, Tokens
from muse_core.errors import MuseError
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.execution import DerivativeSuite, assert_near_fp32
from muse_core.testing.modules import assert_reached, gradients_of, weighted
from muse_core.testing.sequences import (
    assert_close,
    assert_finite,
    assert_same_state,
    cuts,
    from_checkpoint,
    leaves,
    make_tokens,
    mapped,
    piece_of_tokens,
)

PERTURBATION = 1e3


class ModelSuite(DerivativeSuite):
    """A causal language model over ids or embeddings; see ``contracts.Model``."""

    kind = "model"
    length = 21
    periods_lcm = 8
    """Grid on which the case's filters act; offsets of pieces count modulo it."""
    compile_backend = "eager"  # the suites of its layers trace their backward; a whole model's takes half a minute

    def ids(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(200, (3, self.length), generator=generator)

    def outputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"hidden": module(self.ids()).hidden}

    def inputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        shape = (3, self.length, self.width(case, module))
        return {"x": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)}

    def call(self, case: Case, module: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        output = module(inputs["x"], None, make_tokens(3, self.length, documents=True))
        losses = {f"loss {name}": value for name, value in output.losses.items()}
        return {"logits": module.logits(output.hidden)} | losses

    def width(self, case: Case, module: Any) -> int:
        """Of embeddings: the option ``width``, which the causality gate reads too, or that of the hidden states."""
        options = resolve(case.kind, case.name, case.options, self.registry()).options
        hidden: Tensor = module(self.ids()).hidden
        return int(getattr(options, "width", hidden.shape[-1]))

    def test_returns_hidden_states_and_logits(self, case: Case) -> None:
        module = self.build(case)
        output = module(self.ids())
        assert isinstance(output, ModelOutput), f"forward returned {type(output).__name__}, not contracts.ModelOutput"
        shape = tuple(output.hidden.shape)
        assert shape[:2] == (3, self.length), f"hidden is {shape} for ids of {(3, self.length)}"
        assert torch.isfinite(output.hidden).all(), "hidden is not finite"
        logits, due = module.logits(output.hidden), (3, self.length, module.vocabulary_size)
        assert logits.shape == due, f"logits are {tuple(logits.shape)} where {due} are due"
        for path, value in leaves(output.state).items():
            assert not value.is_complex(), f"{path} is complex"
        for name, value in (*output.losses.items(), *output.metrics.items()):
            assert value.shape == (), f"{name} is not a scalar"

    def test_embeddings_of_ids_give_what_the_ids_give(self, case: Case) -> None:
        module: Any = self.build(case).eval()
        with torch.no_grad():
            embedded = module.embed(self.ids())
            found = f"embed gave {tuple(embedded.shape)} in {embedded.dtype} for ids of {(3, self.length)}"
            assert embedded.is_floating_point() and embedded.shape[:2] == (3, self.length), found
            assert_close(module(embedded).hidden, module(self.ids()).hidden, "hidden of embeddings")

    def test_later_tokens_and_other_rows_do_not_matter(self, case: Case) -> None:
        module: Any = self.lively(case).eval()
        x = torch.randn(3, self.length, self.width(case, module), dtype=torch.float64)
        with torch.no_grad():
            base = module.logits(module(x).hidden)
            assert_finite(base, "logits: a value")
            for token in (0, 7, 8, 9, self.length - 1):
                changed = x.clone()
                changed[1, token] += PERTURBATION
                moved = module.logits(module(changed).hidden)
                assert_close(moved[1, :token], base[1, :token], f"logits before the change at token {token}")
                assert_close(moved[[0, 2]], base[[0, 2]], "logits of other rows")

    def test_gradients_of_earlier_logits_are_exactly_zero(self, case: Case) -> None:
        module: Any = self.lively(case).train()
        x = torch.randn(3, self.length, self.width(case, module), dtype=torch.float64, requires_grad=True)
        logits = module.logits(module(x).hidden)
        assert_finite(logits, "logits: a value")
        for token in (1, 8, self.length - 1):
            (gradient,) = torch.autograd.grad(logits[1, :token].square().sum(), x, retain_graph=True)
            assert_finite(gradient, f"the gradient of logits before token {token}")
            assert not gradient[1, token:].any(), (
                f"not causal: logits before token {token} have a gradient to it or later ones"
            )
            assert not gradient[[0, 2]].any(), f"not causal: logits before token {token} have a gradient to other rows"

    def test_pieces_give_what_the_whole_gives(self, case: Case) -> None:
        module: Any = self.lively(case).eval()
        ids = self.ids()
        for documents in (False, True):
            tokens = make_tokens(3, self.length, documents=documents)
            with torch.no_grad():
                whole = module(ids, None, tokens).hidden
                for sizes in ((1,), (5, 1, 2), (13,)):
                    state: State = None
                    parts = []
                    for start, stop in cuts(self.length, sizes):
                        piece = piece_of_tokens(tokens, start, stop, period=self.periods_lcm)
                        output = module(ids[:, start:stop], state, piece)
                        state = from_checkpoint(output.state) if documents else output.state
                        parts.append(output.hidden)
                    assert_close(torch.cat(parts, dim=1), whole, f"hidden in pieces of {sizes}")

    def test_tokens_are_taken_back_bit_by_bit(self, case: Case) -> None:
        """A state is a value: going back to one gives the same bits, however many tokens were read since."""
        module: Any = self.lively(case).eval()
        ids, start = self.ids(), self.length // 2
        tokens = make_tokens(3, self.length)

        def read(first: int, last: int, state: State) -> ModelOutput:
            output: ModelOutput = module(
                ids[:, first:last], state, piece_of_tokens(tokens, first, last, period=self.periods_lcm)
            )
            return output

        with torch.no_grad():
            kept = read(0, start, None).state
            copy = mapped(torch.clone, kept)
            for count in range(1, 9):
                runs = []
                for _ in range(2):
                    state, found = kept, {}
                    for token in range(start, start + count):
                        output = read(token, token + 1, state)
                        state = output.state
                        found[f"hidden of token {token}"] = output.hidden
                    runs.append(found | leaves(state))
                    assert_same_state(kept, copy, f"the state that {count} tokens were read from", within=0.0)
                for name, value in runs[0].items():
                    assert_close(runs[1][name], value, f"{name} after {count} tokens were taken back", within=0.0)

    def test_rows_may_end_in_padding(self, case: Case) -> None:
        """A row gives what it gives without its padding, in which no document starts, and goes on from there; a model
        with filters may refuse ragged rows."""
        module: Any = self.lively(case).eval()
        ids, lengths = self.ids(), torch.tensor([self.length, self.length - 4, 5])
        tokens = make_tokens(3, self.length, documents=True)
        valid = torch.arange(self.length) < lengths[:, None]
        padded = tokens._replace(resets=tokens.resets | ~valid, valid=valid)
        with torch.no_grad():
            try:
                found = module(ids, None, padded)
            except (MuseError, ValueError):
                return
            for row, length in enumerate(lengths.tolist()):
                one, alone = ids[row : row + 1], slice(row, row + 1)
                due = module(one[:, :length], None, _of_row(piece_of_tokens(tokens, 0, length), row))
                assert_close(found.hidden[alone, :length], due.hidden, f"hidden of row {row} beside padding")
                places = torch.arange(length, length + 3)[None]
                following = Tokens(places, length % self.periods_lcm)
                kept = mapped(lambda x, alone=alone: x[alone], found.state)
                actual, expected = (module(one[:, :3], state, following).hidden for state in (kept, due.state))
                assert_close(actual, expected, f"what follows the padding of row {row}")

    def test_bf16_autocast_stays_near_fp32(self, case: Case) -> None:
        module: Any = self.build(case).eval()
        with torch.no_grad():
            expected = module.logits(module(self.ids()).hidden)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = module.logits(module(self.ids()).hidden)
        assert_near_fp32(found, expected, "logits")

    def test_gradients_reach_every_parameter(self, case: Case) -> None:
        module: Any = self.lively(case).train()
        output = module(self.ids())
        total = weighted({"logits": module.logits(output.hidden)}) + sum(output.losses.values())
        assert_reached(gradients_of(total, module))


def _of_row(tokens: Tokens, row: int) -> Tokens:
    resets = None if tokens.resets is None else tokens.resets[row : row + 1]
    return tokens._replace(positions=tokens.positions[row : row + 1], resets=resets)
