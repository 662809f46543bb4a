"""Shapes, dtypes, signals, state: what a layer must return."""

from __future__ import annotations

import copy

import pytest
import torch

from muse_core.contracts import LayerOutput
from muse_core.errors import MuseError
from muse_core.model.stack import place_of
from muse_core.testing.cases import Case
from muse_core.testing.layer_suite.base import LayerBase, output_tensors, run
from muse_core.testing.sequences import ROWS_AND_TOKENS, Sequence, assert_close, assert_same_state, leaves, mapped


class LayerContract(LayerBase):
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_returns_what_the_contract_says(self, case: Case, dtype: torch.dtype) -> None:
        if dtype.itemsize > self.widest(case).itemsize:
            pytest.skip(f"says that it has no {dtype}")
        layer = self.build(case) if dtype == torch.float32 else self.double(case)
        sequence = self.sequence(case, dtype=dtype)
        step = run(layer, sequence)
        assert isinstance(step, LayerOutput), f"forward returned {type(step).__name__}, not contracts.LayerOutput"
        assert step.update.shape == sequence.x.shape, f"update is {tuple(step.update.shape)}"
        assert step.update.dtype == dtype, f"update is {step.update.dtype} for x in {dtype}"
        assert torch.isfinite(step.update).all(), "the update is not finite"
        if self.adds_nothing(case):
            assert not step.update.any(), "adds_nothing promises a zero update"
        else:
            assert step.update.abs().max() > 1e-6, "the update is zero: the layer does nothing at the start"
        self.check_signals(case, step, sequence)
        self.check_state(step)
        for name, loss in step.losses.items():
            assert loss.shape == () and torch.isfinite(loss), f"loss {name} is not a finite scalar"
        for name, measure in step.metrics.items():
            assert measure.shape == () and not measure.requires_grad, f"metric {name} is not a detached scalar"

    def check_signals(self, case: Case, step: LayerOutput, sequence: Sequence) -> None:
        published = self.published(case)
        assert step.signals.keys() == published.keys(), (
            f"returned the signals {sorted(step.signals)} where context.publish has {sorted(published)}"
        )
        for name, trailing in published.items():
            due = (*sequence.x.shape[:2], *trailing)
            assert step.signals[name].shape == due, f"signal {name} is {tuple(step.signals[name].shape)}, not {due}"
            assert not step.signals[name].is_complex(), f"signal {name} is complex"

    def check_state(self, step: LayerOutput) -> None:
        leaves(step.state)

    def test_returns_only_the_signals_that_are_asked_for(self, case: Case) -> None:
        layer = self.build(case, publish=frozenset())
        published = sorted(run(layer, self.sequence(case, dtype=torch.float32)).signals)
        assert not published, f"publishes {published} where context.publish asks for none"

    def test_what_is_nested_gets_its_metrics_back(self, case: Case) -> None:
        """A nested component with ``update_statistics`` is told what stands under its module's name, no more."""
        layer = self.build(case)
        measured: set[str] = set()
        for path, part in layer.named_modules():
            if path and hasattr(part, "update_statistics"):
                place = place_of(layer, path)
                part.register_forward_hook(
                    lambda _, __, output, at=place: measured.update(f"{at}/{name}" for name in measures_of(output))
                )
        returned = run(layer, self.sequence(case, dtype=torch.float32)).metrics
        missing = sorted(measured - returned.keys())
        assert not missing, f"returns no metric {' nor '.join(missing)}: its component could update no statistics"

    def test_leaves_its_inputs_alone(self, case: Case) -> None:
        layer, sequence = self.double(case), self.sequence(case)
        state = run(layer, sequence).state
        before = copy.deepcopy((sequence, mapped(torch.Tensor.detach, state)))
        run(layer, sequence, state)
        assert torch.equal(sequence.x, before[0].x), "forward changed x"
        for name, value in before[0].signals.items():
            assert torch.equal(sequence.signals[name], value), f"forward changed the signal {name}"
        assert_same_state(state, before[1], "forward changed the state that it was given", within=0.0)

    def test_state_survives_being_stored(self, case: Case) -> None:
        """Detached copies of the leaves, by path, hold all that another instance needs to continue."""
        layer, other, sequence = self.double(case).eval(), self.double(case).eval(), self.sequence(case)
        middle = self.length // 2
        with torch.no_grad():
            state = run(layer, sequence.piece(0, middle, period=self.period(case))).state
            rest = sequence.piece(middle, self.length, period=self.period(case))
            stored = {path: value.clone() for path, value in leaves(state).items()}
            restored = _rebuilt(state, stored, "state")
            expected, actual = run(layer, rest, state), run(other, rest, restored)
        for name, value in output_tensors(expected).items():
            assert_close(output_tensors(actual)[name], value, f"{name} after restoring the state", within=0.0,
                         axes=ROWS_AND_TOKENS)

    def test_padding_leaves_the_state_alone(self, case: Case) -> None:
        """Where ``valid`` is false state stays what it was; a layer with filters may refuse ragged rows."""
        layer, sequence = self.double(case).eval(), self.sequence(case)
        kept = self.length - 4
        valid = torch.arange(self.length, device=self.device).expand(self.batch, -1) < kept
        padded = Sequence(x=sequence.x, signals=sequence.signals, tokens=sequence.tokens._replace(valid=valid))
        try:
            with torch.no_grad():
                step = run(layer, padded)
        except (MuseError, ValueError) as refusal:
            assert self.period(case), f"refused padding without filters: {refusal}"
            return
        expected = run(layer, sequence.piece(0, kept))
        assert_close(step.update[:, :kept], expected.update, "update before the padding", axes=ROWS_AND_TOKENS)
        self.check_same_future(case, layer, step.state, expected.state)

    def check_same_future(self, case: Case, layer: torch.nn.Module, left: object, right: object) -> None:
        """Two states are equal when everything computed from them is."""
        following = self.sequence(case, seed=9)
        start = self.length - 4
        tokens = following.tokens._replace(
            positions=following.tokens.positions + start, offset=start % (self.period(case) or 1)
        )
        following = Sequence(x=following.x, signals=following.signals, tokens=tokens)
        with torch.no_grad():
            actual, expected = run(layer, following, left), run(layer, following, right)
        assert_close(actual.update, expected.update, "what follows the padding", axes=ROWS_AND_TOKENS)


def measures_of(output: object) -> dict[str, torch.Tensor]:
    """Metrics in what a nested component returned: a layer's, a router's, or a filter's third."""
    if hasattr(output, "metrics"):
        return output.metrics
    is_filters = isinstance(output, tuple) and len(output) == 3 and isinstance(output[2], dict)
    return output[2] if is_filters else {}


def _rebuilt(state: object, stored: dict[str, torch.Tensor], path: str) -> object:
    if isinstance(state, dict):
        return {key: _rebuilt(value, stored, f"{path}.{key}") for key, value in state.items()}
    return None if state is None else stored[path]
