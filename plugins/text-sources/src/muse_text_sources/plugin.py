"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_text_sources.options import FilesOptions, HubOptions, MixOptions, PythonLibraryOptions, StateOfTheUnionOptions


@hookimpl
def muse_sources() -> Iterable[Component]:
    yield Component(
        "state-of-the-union",
        options=StateOfTheUnionOptions,
        implementation="muse_text_sources.state_of_the_union:StateOfTheUnion",
    )
    yield Component(
        "python-library",
        options=PythonLibraryOptions,
        implementation="muse_text_sources.python_library:PythonLibrary",
    )
    yield Component("files", options=FilesOptions, implementation="muse_text_sources.files:Files")
    yield Component("hub", options=HubOptions, implementation="muse_text_sources.hub:Hub")
    yield Component("mix", options=MixOptions, implementation="muse_text_sources.mix:Mix")
