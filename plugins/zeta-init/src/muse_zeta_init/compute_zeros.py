"""Recomputes the cached zeros: ``python -m muse_zeta_init.compute_zeros > zeros.txt``, about half a second each."""

from __future__ import annotations

import argparse
import sys

import mpmath

DIGITS = 17
"""Significant decimal digits written: a float64 read from them is the nearest one."""


def zero(n: int) -> str:
    """Imaginary part of the n-th zero of ζ on the critical line, n from 1, in decimal digits."""
    with mpmath.workdps(DIGITS + 8):
        return mpmath.nstr(mpmath.zetazero(n).imag, DIGITS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1536, help="how many zeros, from the lowest")
    for n in range(1, parser.parse_args().count + 1):
        sys.stdout.write(zero(n) + "\n")


if __name__ == "__main__":
    main()
