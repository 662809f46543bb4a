"""The source."""

from __future__ import annotations

import random
from collections.abc import Iterator

from muse_core.contracts import Document
from muse_core.data.sources import SourceContext

from new_plugin.options import NewPluginOptions

VERSION = 1
"""Part of the fingerprint: raise it when equal options give other documents."""


class NewPlugin:
    """Every document is a function of its number and the options, so the order is fixed and nothing is stored."""

    def __init__(self, options: NewPluginOptions, context: SourceContext):
        self.options = options

    def fingerprint(self) -> str:
        """Equal fingerprints give equal documents."""
        return f"new-plugin {VERSION} {self.options}"

    def documents(self) -> Iterator[Document]:
        for number in range(self.options.count):
            yield Document("\n".join(self.sums(number)) + "\n", f"sums {number}")

    def sums(self, number: int) -> Iterator[str]:
        """The lines of one document."""
        draws = random.Random(f"{self.options.draw}/{number}")
        for _ in range(self.options.lines):
            left, right = draws.randint(0, self.options.largest), draws.randint(0, self.options.largest)
            yield f"{left} + {right} = {left + right}"
