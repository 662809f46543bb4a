"""What becomes of each map: which form, with which numbers, and what it costs on state pairs."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from muse_core.errors import RecipeError
from muse_koopman.maps import CompressedEmbedding, CompressedLinear
from muse_koopman.modes import Modes, fitted_map, relative_error, schur_modes, singular_modes
from muse_koopman.options import CompressOptions, MapOptions
from muse_koopman.pairs import Recorder, recorded
from muse_koopman.sizes import NARROWEST, WIDEST, Shape, bisected, model_bytes, uncompressed_bytes
from muse_koopman.storage import stored

EMBEDDING = "embedding"
LOWEST_SHARE = 1e-6


@attrs.frozen(kw_only=True)
class Form:
    """What became of a map."""

    name: str
    became: str
    """In words, for the table."""
    modes: str = ""
    """Where the modes come from."""
    module: nn.Module | None = None
    """In place of the map; None leaves it as it is."""
    options: MapOptions | None = None
    error: float | None = None
    """‖y − ŷ‖ / ‖y‖ on held-out state pairs."""

    def row(self, model: nn.Module) -> dict[str, Any]:
        before = model.get_submodule(self.name)
        weight = before.weight
        return {
            "map": self.name,
            "shape": f"{weight.shape[0]} × {weight.shape[1]}",
            "became": self.became,
            "modes": self.modes,
            "bytes_before": model_bytes(before),
            "bytes_after": model_bytes(before if self.module is None else self.module),
        } | ({} if self.error is None else {"error": self.error})


def chosen_forms(
    setup: Any, options: CompressOptions, shapes: dict[str, Shape], embedding: Shape | None
) -> tuple[list[Form], dict[str, Any]]:
    """Forms of the maps in the order of the model, and the numbers that chose them."""
    recorders = recorded(setup, list(shapes), options.tokens)
    if options.method in ("int8", "int4"):
        return quantised(setup.model, options, recorders, embedding), {}
    if options.method == "magnitude":
        return pruned(setup.model, options, recorders, shapes)
    return factored(setup.model, options, recorders, shapes, embedding)


def quantised(
    model: nn.Module, options: CompressOptions, recorders: dict[str, Recorder], embedding: Shape | None
) -> list[Form]:
    """Every map as integers, factors too; the embedding in int8 either way, a row for each token."""
    forms = []
    if embedding is not None:
        table = CompressedEmbedding(stored(model.get_submodule(EMBEDDING).weight, "int8"))
        own = MapOptions(module=EMBEDDING, store="int8")
        forms.append(Form(name=EMBEDDING, became="int8", module=table, options=own))
    for name, recorder in recorders.items():
        inner, store = recorder.inner, options.method
        left, right, rank = inner, None, None
        if isinstance(inner, CompressedLinear) and inner.right is not None:
            left, right, rank = inner.left, stored(inner.right.dense(), store), inner.left.columns
        elif isinstance(inner, CompressedLinear):
            left = inner.left
        module = CompressedLinear(stored(left.weight, store), right, recorder.bias)
        became = store if rank is None else f"rank {rank} in {store}"
        forms.append(form_of(name, module, MapOptions(module=name, rank=rank, store=store), recorder, became))
    return forms


def pruned(
    model: nn.Module, options: CompressOptions, recorders: dict[str, Recorder], shapes: dict[str, Shape]
) -> tuple[list[Form], dict[str, Any]]:
    """The same share of the largest entries of every map."""
    goal = goal_for_maps(model, options, shapes)
    dropped = bisected(lambda d: sum(min(s.whole(), s.sparse(1 - d)) for s in shapes.values()), goal, LOWEST_SHARE, 1.0)
    assert dropped is not None, "refuse() has compared the ratio with what the method can do"
    share, forms = 1 - dropped, []
    for name, shape in shapes.items():
        recorder, kept = recorders[name], shape.kept(share)
        if shape.sparse(share) >= shape.whole():
            forms.append(Form(name=name, became="dense: no smaller"))
            continue
        module = CompressedLinear(stored(recorder.weight, "sparse", kept), None, recorder.bias)
        own = MapOptions(module=name, store="sparse", kept=kept)
        forms.append(form_of(name, module, own, recorder, f"{kept:,} of {shape.rows * shape.columns:,} entries"))
    return forms, {"share_kept": share}


def factored(
    model: nn.Module,
    options: CompressOptions,
    recorders: dict[str, Recorder],
    shapes: dict[str, Shape],
    embedding: Shape | None,
) -> tuple[list[Form], dict[str, Any]]:
    """The modes that one ε keeps of every map, the least ε that reaches the ratio. Raises RecipeError where none
    does."""
    found = {name: modes_of(recorder, options) for name, recorder in recorders.items()}
    store = options.store
    # Left as a matrix for lack of state pairs.
    unseen = sum(shapes[name].whole(store) for name, one in found.items() if one is None)
    known = {name: one for name, one in found.items() if one is not None}

    def bytes_at(epsilon: float) -> int:
        return unseen + sum(shapes[name].best(one[0].rank(epsilon), store) for name, one in known.items())

    goal = goal_for_maps(model, options, shapes)
    if store != "fp32" and embedding is not None:
        goal += embedding.whole() - embedding.whole("int8")
    epsilon = bisected(bytes_at, goal, WIDEST, NARROWEST)
    if epsilon is None:
        raise RecipeError(
            f"koopman-compress: a ratio of {options.goal:g} is out of reach: the modes of equal size and the maps that "
            f"their layers do not call leave {bytes_at(NARROWEST):,} bytes where {int(goal):,} are due - ask for less"
        )
    forms = []
    for name, one in found.items():
        if one is None:
            forms.append(Form(name=name, became="dense: its layer reads the matrix and does not call the map"))
            continue
        modes, origin = one
        rank, shape = modes.rank(epsilon), shapes[name]
        if shape.factored(rank, store) >= shape.whole(store):
            forms.append(Form(name=name, became=f"dense: {rank} of {shape.full} modes are no smaller", modes=origin))
            continue
        left, right = (factor.to(recorders[name].weight.dtype) for factor in modes.factors(rank))
        module = CompressedLinear(stored(left, "fp32"), stored(right, "fp32"), recorders[name].bias)
        became = f"rank {rank} of {shape.full}"
        forms.append(form_of(name, module, MapOptions(module=name, rank=rank), recorders[name], became, origin))
    return forms, {"epsilon": epsilon}


def modes_of(recorder: Recorder, options: CompressOptions) -> tuple[Modes, str] | None:
    """Modes of a map and where they come from; None for one that was never called."""
    if options.method == "svd":
        return singular_modes(recorder.weight.detach().double()), "singular values"
    if not recorder.fit.count or not recorder.fit.outputs:
        return None
    fitted, regular = fitted_map(recorder.fit, options.ridge)
    if options.method == "koopman" and fitted.shape[0] == fitted.shape[1]:
        return schur_modes(fitted), "Schur form"
    return singular_modes(fitted, regular), "whitened singular values"


def goal_for_maps(model: nn.Module, options: CompressOptions, shapes: dict[str, Shape]) -> float:
    """Bytes that the matrices may take."""
    assert options.goal is not None
    matrices = sum(_matrix_bytes(model.get_submodule(name)) for name in shapes)
    return uncompressed_bytes(model) / options.goal - (model_bytes(model) - matrices)


def _matrix_bytes(module: nn.Module) -> int:
    bias = getattr(module, "bias", None)
    return model_bytes(module) - (0 if bias is None else bias.numel() * bias.element_size())


def form_of(
    name: str, module: CompressedLinear, options: MapOptions, recorder: Recorder, became: str, modes: str = ""
) -> Form:
    """A form with its error on the state pairs that no fit has seen."""
    with torch.no_grad():
        weight: Tensor = module.weight
        error = relative_error(weight, recorder.check) if recorder.check.count else None
    return Form(name=name, became=became, modes=modes, module=module, options=options, error=error)
