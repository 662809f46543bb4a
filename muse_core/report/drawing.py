"""vl-convert, which holds Vega, Vega-Lite and vega-embed and needs no browser and no network; imported when asked."""

from __future__ import annotations

import copy
import functools
from types import ModuleType
from typing import Any

from muse_core.errors import RecipeError
from muse_core.report.charts import Chart, theme

WIDTH = 640
"""Pixels of a PNG's plot, before ``SCALE``."""
SCALE = 1.5


def _library() -> ModuleType:
    try:
        import vl_convert
    except ImportError as error:
        raise RecipeError(
            f"reports need vl-convert-python, which cannot be imported ({error}) - pip install 'muse-core[report]'"
        ) from None
    return vl_convert


@functools.cache
def script() -> str:
    """The JavaScript that draws in a page, 0.9 MB, as the library ships it."""
    found: str = _library().javascript_bundle()
    return found


def png(chart: Chart) -> bytes:
    """The picture on white with its title."""
    found: bytes = _library().vegalite_to_png(_still(chart), scale=SCALE, config=theme(dark=False))
    return found


def svg(chart: Chart) -> str:
    """The picture on white with its title, as SVG."""
    found: str = _library().vegalite_to_svg(_still(chart), config=theme(dark=False))
    return found


def _still(chart: Chart) -> dict[str, Any]:
    spec = copy.deepcopy(chart.spec) | {"width": WIDTH, "padding": 12}
    del spec["autosize"]
    title = {"text": chart.title, "anchor": "start", "fontSize": 14, "offset": 10}
    return spec | {"title": title}
