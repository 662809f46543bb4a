"""The causality gate's checks with the weights that a run has now, where the gate looks at those that it began with."""

from __future__ import annotations

from typing import Any

import torch

from muse_core.contracts import Batch
from muse_core.errors import PluginError, RecipeError
from muse_core.evaluation.causality import Leak, document_tokens
from muse_core.evaluation.suites.subject import Subject

CHECKS = ("values, exact", "values, own precision", "gradients")


def causality_rows(subject: Subject) -> list[dict[str, Any]]:
    """One row a check: whether it ``passed``, or ``skipped`` and why; of a ``leak`` or of values that are
    ``not_finite`` the ``layer`` in which it shows and the sentence. Of random tokens, two rows of the training length
    with a document start in one; no text is opened."""
    setup = subject.setup
    broken = [name for name, one in setup.model.named_parameters() if not torch.isfinite(one).all()]
    if broken:
        return [{"skipped": f"{broken[0]} has entries that are no finite numbers, which reach every output"}]
    rows: list[dict[str, Any]] = []
    for check, ask in zip(CHECKS, setup.causality_checks(_batch(subject))):
        try:
            leak = ask()
        except (PluginError, RecipeError, NotImplementedError, RuntimeError) as error:
            rows.append({"check": check, "skipped": f"it cannot be made: {error}"})
            continue
        row: dict[str, Any] = {"check": check, "passed": leak is None}
        found = "leak" if isinstance(leak, Leak) else "not_finite"
        rows.append(row if leak is None else row | {"layer": leak.layer, found: str(leak)})
    return rows


def _batch(subject: Subject) -> Batch:
    """Two rows of random tokens; where the recipe starts documents within rows, with one in the middle."""
    setup = subject.setup
    generator = torch.Generator().manual_seed(subject.seed)
    ids = torch.randint(setup.corpus.vocabulary_size, (2, subject.length), generator=generator)
    ids = ids.to(setup.precision.device)
    where = "inside" if setup.recipe.data.reset_at_documents else "none"
    return Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool), document_tokens(ids, where))
