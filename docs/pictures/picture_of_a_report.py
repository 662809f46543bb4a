"""Writes one picture of a run's report as SVG: python docs/pictures/picture_of_a_report.py OUT.svg PICTURE RUN…

PICTURE is the name of a file in the run's folder pictures, as bits-per-byte. Needs vl-convert-python.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from muse_core.report.charts import all_charts
from muse_core.report.drawing import svg
from muse_core.report.reading import read_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture")
    parser.add_argument("runs", nargs="+", type=Path)
    asked = parser.parse_args()
    charts = {chart.name: chart for found in all_charts(read_runs(asked.runs)).values() for chart in found}
    if asked.picture not in charts:
        parser.error(f"no picture {asked.picture!r}; there are {', '.join(charts)}")
    asked.out.write_text(svg(charts[asked.picture]) + "\n", encoding="utf-8")
    print(charts[asked.picture].alt)


if __name__ == "__main__":
    main()
