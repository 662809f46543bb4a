"""Print the table of kernel times: python -m muse_kernels.benchmarks [--json FILE] [--plot FILE] [--only PART]."""

import argparse
import sys
from pathlib import Path

from .table import PARTS, run


def main() -> int:
    """Measure, print, and write what was asked for; 1 where there is nothing to measure on."""
    parser = argparse.ArgumentParser(prog="muse_kernels.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw bytes against time beside the copy bandwidth (matplotlib)")
    parser.add_argument("--only", choices=PARTS, help="one part of the table; cpu needs no GPU")
    arguments = parser.parse_args()
    return run(json_file=arguments.json, plot=arguments.plot, only=arguments.only)


if __name__ == "__main__":
    sys.exit(main())
