"""What one program takes of a row. Choices are the fastest of those measured on an H200 (docs/results)."""

from typing import NamedTuple


class Tile(NamedTuple):
    """P lanes of E consecutive sites, on this many warps.

    `registers` caps those of a thread, so that more programs fit a multiprocessor; zero leaves them to the compiler.
    """

    lanes: int
    per_lane: int
    warps: int
    registers: int = 0

    @property
    def sites(self) -> int:
        return self.lanes * self.per_lane

    @property
    def options(self) -> dict:
        """As keyword arguments of a launch."""
        options = {"P": self.lanes, "E": self.per_lane, "num_warps": self.warps}
        return options | ({"maxnreg": self.registers} if self.registers else {})


class ColumnTile(NamedTuple):
    """Q rows by W columns of the values, T sites loaded ahead; `span` sites one after the other in one program.

    The backward kernel loads `late` sites at a time.
    """

    rows: int
    columns: int
    stretch: int
    span: int
    warps: int
    late: int = 16


def tile_for(sites: int, per_lane: int, longest: int) -> Tile:
    """The smallest tile that holds a row, of at most `longest` sites; one lane is one thread."""
    lanes = 32
    while lanes * per_lane < min(sites, longest):
        lanes *= 2
    return Tile(lanes, per_lane, lanes // 32)


LONGEST = 4096
"""Sites of a row that one program holds at once."""
LOOP = Tile(128, 8, 4)
"""theta forward of many rows, one program a row: chunks of 1,024 sites."""
CHAIN = Tile(256, 16, 8, registers=80)
"""theta forward of fewer, longer rows, a program a chunk: three to a multiprocessor."""


def left_tile(sites: int) -> Tile:
    """theta forward: rows of up to 4,096 sites in one program, longer ones in chunks of 2,048."""
    return tile_for(sites, 16, LONGEST if sites <= LONGEST else 2048)


def left_backward_tile(sites: int) -> Tile:
    """theta backward."""
    return tile_for(sites, 8, LONGEST if sites <= LONGEST else 2048)


def green_tile(sites: int) -> Tile:
    """G forward and backward: three or four rows of complex numbers at once leave registers for eight sites."""
    return tile_for(sites, 8, LONGEST if sites <= LONGEST else 2048)


def column_tile(rows: int, sites: int, width: int) -> ColumnTile:
    """The values, one thread a column: whole rows where they are enough threads, otherwise chunks of at least 64."""
    columns = 1
    while columns < min(width, 32):
        columns *= 2
    together = 32 // columns
    programs = -(-rows // together) * -(-width // columns)
    span = sites
    while programs * -(-sites // span) < 256 and span > 128:
        span = (span + 1) // 2
    # Twice the loads in flight are 6 % faster, and masks in 32 unrolled sites take minutes to compile.
    stretch = 32 if span == sites and sites % 32 == 0 else 16
    return ColumnTile(together, columns, stretch, span, 1)
