"""The interval of a single run takes rows of one document together."""

from __future__ import annotations

import numpy as np

from muse_core.evaluation.held_out import interval


def test_more_rows_of_the_same_documents_do_not_narrow_the_interval() -> None:
    hardness = np.exp(0.3 * np.random.default_rng(0).normal(size=30))

    def width(rows: int, *, grouped: bool = True) -> float:
        documents = np.repeat(np.arange(30), rows)
        low, high = interval(50.0 * hardness[documents], np.full(30 * rows, 100), documents if grouped else None)
        return high - low

    assert abs(width(25) / width(1) - 1) < 0.02
    assert width(25) > 4 * width(25, grouped=False)
