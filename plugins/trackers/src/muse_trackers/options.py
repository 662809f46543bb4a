"""Options of the sinks. Imports no torch and neither library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen, validators

from muse_core.component import RecipePath

NAME = validators.matches_re(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@frozen(kw_only=True)
class TrackioOptions:
    """The numbers of a run in a local database of Trackio, which ``trackio show`` opens in a browser."""

    project: str = field(default="muse", validator=NAME)
    """Project that the run belongs to."""
    folder: RecipePath | None = None
    """Folder of the database, relative to the recipe. Default: Trackio's own, or TRACKIO_DIR."""
    packages = {"trackio": "muse-trackers[trackio]"}
    writes_elsewhere = True

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds: a database in its scratch folder."""
        return [{"folder": str(folder / "trackio")}]


@frozen(kw_only=True)
class WandbOptions:
    """The numbers of a run for Weights & Biases."""

    project: str = field(default="muse", validator=NAME)
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team that the project belongs to. Default: that of the account."""
    mode: Literal["offline", "online"] = "offline"
    """offline: into the folder wandb of the run, for ``wandb sync``. online: to the server, with the account that
    ``wandb login`` keeps."""
    packages = {"wandb": "muse-trackers[wandb]"}
    writes_elsewhere = True

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds: nothing that asks a server."""
        return [{"mode": "offline"}]
