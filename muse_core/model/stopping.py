"""Text that ends before the first of some strings, passed on as early as it can be."""

from __future__ import annotations

from collections.abc import Sequence


class UntilStop:
    """Takes text piece by piece; ``stopped`` once one of the strings has appeared, which is left out with the rest."""

    def __init__(self, stops: Sequence[str] = ()):
        """Raises ValueError for an empty string, which every text contains."""
        if not all(stops):
            raise ValueError("a stop string is empty, which every text contains")
        self.stops = tuple(stops)
        self.held = ""
        self.stopped = False

    def add(self, text: str, *, final: bool = False) -> str:
        """What may be shown now: all but an end that could be the beginning of a stop string, unless ``final``."""
        if self.stopped:
            return ""
        self.held += text
        ends = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            shown, self.held = self.held[: min(ends)], ""
            return shown
        kept = 0 if final else max((self._begun(stop) for stop in self.stops), default=0)
        cut = len(self.held) - kept
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def _begun(self, stop: str) -> int:
        """How many of the last characters are the beginning of ``stop``."""
        longest = min(len(stop) - 1, len(self.held))
        return next((size for size in range(longest, 0, -1) if self.held.endswith(stop[:size])), 0)
