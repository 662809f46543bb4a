"""Options of the core's stages. Imports no torch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class TrainOptions:
    """Next-token cross-entropy with the layers' own losses."""


@attrs.frozen(kw_only=True)
class EvaluateOptions:
    """Held-out measures of the weights as they are; nothing is trained."""
