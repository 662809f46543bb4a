"""What the layers of a trained model do on a text: every signal that they can publish and every measure, in one call.

Letters: N tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from muse_core.building import build_model
from muse_core.contracts import Batch, LayerOutput, Routing, Tokens
from muse_core.errors import DataError
from muse_core.evaluation.cross_entropy import cross_entropy
from muse_core.evaluation.held_out import undisturbed
from muse_core.evaluation.recording import recording
from muse_core.model.torch_defaults import own_defaults


@attrs.frozen(eq=False, kw_only=True)
class Diagnosis:
    """Numbers by what they are, then by layer: ``signals["decay"]["blocks.0.resolvent"]``."""

    loss: float
    """Nats per token of the text."""
    signals: dict[str, dict[str, Tensor]]
    """(N, …) on the CPU, at least fp32: what each layer's options list under ``provides``."""
    metrics: dict[str, dict[str, float]]
    """What each layer and its filters report, over the whole text."""

    def ranges(self) -> dict[tuple[str, str], tuple[float, float, float]]:
        """(quantity, layer) → smallest, mean and largest value: of signals over tokens and the rest of their shape, of
        measures the one value thrice."""
        found = {
            (f"signal {name}", layer): (value.min().item(), value.mean().item(), value.max().item())
            for name, layers in self.signals.items() for layer, value in layers.items()
        }
        return found | {
            (name, layer): (value,) * 3 for name, layers in self.metrics.items() for layer, value in layers.items()
        }


@own_defaults()
def diagnose(
    run: Path | str | Any,
    text: str | None = None,
    *,
    weights: Literal["newest", "start"] = "newest",
    tokens: int = 1024,
) -> Diagnosis:
    """Read a text as one document, from its start, with every signal published.

    ``run``: a run directory, or a ``Setup``, whose weights are taken as they are. ``text``: by default the beginning of
    the validation text; at most ``tokens`` tokens of either are read. ``weights`` "start": those that the run's recipe
    begins with. Raises StorageError when there is no run or no checkpoint of a trained step, DataError for a text of
    fewer than two tokens or another than the run's, and for a run on a task without a text.
    """
    setup = _opened(run, weights)
    if text is None and not setup.corpus.is_text:
        raise DataError("the run's data is a task, which has no validation text: give a text with --text, or tokens by "
                        "their numbers where they stand for no text, as --text '1 2 3'")
    if text is None:
        ids = [int(token) for token in setup.corpus.split("validation").tokens[:tokens]]
    else:
        ids = [int(token) for token in setup.corpus.tokenizer.encode(text)[:tokens]]
    if len(ids) < 2:
        raise DataError(f"a text of {len(ids)} token{'s' * (len(ids) != 1)} has nothing to predict; give at least two")
    device = setup.precision.device
    model, _ = build_model(
        setup.recipe,
        setup.registry,
        vocabulary_size=setup.corpus.vocabulary_size,
        device=device,
        dtype=setup.precision.dtype,
        publish_all=True,
    )
    model.load_state_dict(setup.model.state_dict())
    signals: dict[str, dict[str, Tensor]] = {}

    def keep(layer: str, step: LayerOutput | Routing, inputs: tuple[Any, ...]) -> None:
        for name, value in step.signals.items() if isinstance(step, LayerOutput) else ():
            kept = value[0].to("cpu", torch.promote_types(value.dtype, torch.float32))
            signals.setdefault(name, {})[layer] = kept

    stream = torch.tensor([ids], device=device)
    positions = torch.arange(len(ids) - 1, device=device)[None]
    batch = Batch(stream[:, :-1], stream[:, 1:], torch.ones_like(positions, dtype=torch.bool), Tokens(positions))
    with undisturbed(model), setup.precision(), recording(model, keep):
        output = model(batch.inputs, None, batch.tokens)
        loss = cross_entropy(model, output.hidden, batch).item() / positions.shape[1]
    metrics: dict[str, dict[str, float]] = {}
    for full_name, value in output.metrics.items():
        layer, _, name = full_name.partition("/")
        metrics.setdefault(name, {})[layer] = value.item()
    return Diagnosis(loss=loss, signals=signals, metrics=metrics)


def own_checks(setup: Any, run: Path) -> dict[str, dict[str, float | str]]:
    """The checks that the model of an opened run adds itself, see ``optional_contracts.Checks``. None for most."""
    if not hasattr(setup.model, "checks"):
        return {}
    with undisturbed(setup.model):
        found: dict[str, dict[str, float | str]] = setup.model.checks(setup, run)
    return found


def _opened(run: Any, weights: str) -> Any:
    if not isinstance(run, (str, Path)):
        return run
    # The loop imports this package, so that it cannot be imported above.
    from muse_core.training.trained import open_start, open_trained

    return open_start(Path(run)) if weights == "start" else open_trained(Path(run), untrained=False)[0]
