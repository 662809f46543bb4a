"""What one program takes of a row. Choices are the fastest of those measured (docs/results)."""

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


class LaneTile(NamedTuple):
    """P lanes of E consecutive sites, each with G columns of the values, on this many warps."""

    lanes: int
    per_lane: int
    columns: int
    warps: int
    registers: int = 0

    @property
    def sites(self) -> int:
        return self.lanes * self.per_lane

    def groups(self, width: int) -> int:
        """Programs that share the columns of a row."""
        return -(-width // self.columns)

    @property
    def options(self) -> dict:
        """As keyword arguments of a launch."""
        return Tile(self.lanes, self.per_lane, self.warps, self.registers).options | {"G": self.columns}


def tile_for(sites: int, per_lane: int, longest: int) -> Tile:
    """The smallest tile that holds a row, of at most `longest` sites; one lane is one thread."""
    lanes = 32
    while lanes * per_lane < min(sites, longest):
        lanes *= 2
    return Tile(lanes, per_lane, lanes // 32)


LONGEST = 4096
"""Sites of a row that one program holds at once."""
LOOP_ROWS, CHAIN_ROWS = 512, 32
"""Rows from which a program a row fills the device, and from which a row's chunks may wait for each other: handing
a number on takes 0.6 us a chunk, in which the chunks of a dozen rows are read once more. Measured (docs/results)."""
LOOP = Tile(128, 8, 4)
"""theta forward of many rows, one program a row: chunks of 1,024 sites."""
CHAIN = Tile(256, 16, 8, registers=80)
"""theta forward of fewer, longer rows, a program a chunk: three to a multiprocessor."""
CHAIN_BACKWARD = Tile(256, 8, 8)
"""theta backward of such rows."""


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
    """The values, one thread a column: whole rows where they are enough threads, otherwise chunks of at least 64 sites,
    so many that the second reading which they cost is made at the speed of memory."""
    columns = 1
    while columns < min(width, 32):
        columns *= 2
    together = 32 // columns
    programs = -(-rows // together) * -(-width // columns)
    span = sites
    while programs < 512 and programs * -(-sites // span) < 4096 and span > 128:
        span = (span + 1) // 2
    return ColumnTile(together, columns, 16, span, 1)


def lane_tile(rows: int, sites: int, width: int, inside_tokens: bool = False) -> LaneTile | None:
    """theta and the values in one pass; None where one thread a column is faster.

    Where heads lie inside tokens, neighbouring rows share the sectors of y: one thread a column fills them, and lanes
    take 1.5 times as long at M = 6. At M = 8 the values of a site fill two sectors.
    """
    if inside_tokens:
        return LaneTile(32, 4, 8, 1, registers=255) if width == 8 and rows >= 1024 else None
    return _lanes(rows, sites, width, per_lane=4, columns=width if width < 8 else 4)


def lane_backward_tile(rows: int, sites: int, width: int) -> LaneTile | None:
    """The values' adjoint alike: its gradient and y leave registers for two sites a lane."""
    return _lanes(rows, sites, width, per_lane=2, columns=min(width, 8))


def _lanes(rows: int, sites: int, width: int, per_lane: int, columns: int) -> LaneTile | None:
    """A warp a row, more warps where rows are few.

    None for enough columns to fill the device with a thread each, and for rows so few and long that their chunks
    should run at once.
    """
    if width == 0 or width > 8 and rows * width >= 16_384:
        return None
    programs = rows * -(-width // columns)
    if programs < 512 and sites > LONGEST:
        return None
    warps = 1 if programs >= 1024 else 4 if programs >= 512 else 8
    while warps > 1 and 32 * warps * per_lane >= 2 * sites:
        warps //= 2
    # Sixteen programs of a warp fit a multiprocessor at 128 registers a thread: 2,112 rows run at once.
    return LaneTile(32 * warps, per_lane, columns, warps, registers=128)
