"""Draws what a terminal shows of a command: python docs/pictures/picture_of_a_run.py OUT.svg COMMAND…

Needs pyte (a terminal emulator) and rich. The command runs in a pseudo-terminal of 100 columns; the picture is the
screen as it stands when the command has ended, or after SECONDS with --at SECONDS.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from fcntl import ioctl

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 100, 60


def screen_of(command: list[str], seconds: float | None) -> pyte.Screen:
    """The terminal's screen after the command, or after so many seconds, when it is asked to stop."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
        os.execvp(command[0], command)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGTERM)
            break
        if not ready:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        stream.feed(data)
    os.waitpid(child, 0)
    return screen


def styled(screen: pyte.Screen) -> list[Text]:
    """The lines with their colours, without the empty ones at the end."""
    lines = []
    for row in range(screen.lines):
        text = Text()
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            colour = None if cell.fg == "default" else cell.fg if not _is_hex(cell.fg) else f"#{cell.fg}"
            text.append(cell.data, Style(color={"brown": "yellow"}.get(colour, colour), bold=cell.bold))
        text.rstrip()
        lines.append(text)
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def _is_hex(colour: str) -> bool:
    return len(colour) == 6 and all(c in "0123456789abcdef" for c in colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", type=float, help="stop the command after so many seconds and draw the screen then")
    parser.add_argument("out")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if not given.command:
        parser.error("give the command to draw")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)
    for line in styled(screen_of(given.command, given.at)):
        console.print(line, no_wrap=True, crop=True)
    picture = console.export_svg(title=" ".join(["$", *given.command]))
    with open(given.out, "w", encoding="utf-8") as file:  # without the fonts that rich would fetch from elsewhere
        file.write(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL))
    print(given.out, file=sys.stderr)


if __name__ == "__main__":
    main()
