"""Options of the sink."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """The loss over steps as comma-separated values, in the run's directory."""

    file: str = field(default="losses.csv", validator=validators.matches_re(r"[A-Za-z0-9][A-Za-z0-9._-]*"))
    """Name of the file."""

    # A sink that needs a library names it here, and a run without it is refused before it is begun:
    # packages = {"name_to_import": "what-to-install"}
