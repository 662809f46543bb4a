"""Options of the source."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class NewPluginOptions:
    """Documents of sums, one a line, such as "12 + 30 = 42"."""

    count: int = field(default=400, validator=[validators.ge(20), validators.le(10_000_000)])
    """Number of documents."""
    lines: int = field(default=16, validator=[validators.ge(1), validators.le(100_000)])
    """Sums of a document."""
    largest: int = field(default=99, validator=[validators.ge(1), validators.le(10**12)])
    """Largest summand."""
    draw: int = field(default=0, validator=validators.ge(0))
    """Which of the possible texts; the run's seed leaves it alone."""
