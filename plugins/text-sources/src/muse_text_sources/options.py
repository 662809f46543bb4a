"""What recipes can say about these sources."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class StateOfTheUnionOptions:
    """The State of the Union addresses 1790-2021: 233 documents, 10.8 MB, installed with this plugin."""


@attrs.frozen(kw_only=True)
class PythonLibraryOptions:
    """The sources of the running Python's standard library without its tests; every file is a document."""
