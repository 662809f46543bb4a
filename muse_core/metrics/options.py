"""Options of the core's sinks. Imports no torch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class TensorBoardOptions:
    """Scalars for TensorBoard in the folder ``tensorboard`` of the run; needs muse-core[tensorboard]."""

    packages = {"tensorboard": "muse-core[tensorboard]"}
