"""Where each key of a TOML text stands, and the limits that keep its parser from running away.

tomllib gives no positions, and Python 3.11's takes 17 s for a dotted key of 40 kB; so the text is walked once before it
is parsed. The walk accepts everything that tomllib accepts: where it gives up, tomllib refuses as well.
"""

from __future__ import annotations

import bisect
import re

MAX_BYTES = 256 * 1024
MAX_KEY_PARTS = 8
MAX_DEPTH = 16
MAX_SCALAR = 128
"""Characters of a number or a date."""
MAX_ITEMS = 4096
"""Items of a list."""

Path = tuple[str | int, ...]
"""Key path from the root; integers are indices of arrays."""

# Possessive repetitions are of single characters alone: those of groups go wrong before Python 3.11.5 (gh-100061,
# gh-106052). No group can match in two ways, so that a string without an end is given up in time that grows with its
# length.
_BLANK = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*")
_SPACE = re.compile(r"[ \t]*+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]++")
_SCALAR = re.compile(r"[^,\[\]{}#\n\"']++")
_STRINGS = (
    re.compile(r'"""[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*"""("{0,2}+)', re.DOTALL),
    re.compile(r"'''[^']*+(?:'(?!'')[^']*+)*'''('{0,2}+)", re.DOTALL),
    re.compile(r'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*"'),
    re.compile(r"'[^'\n]*+'"),
)
_ESCAPES = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_SIMPLE = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


class TooMuch(ValueError):
    """The text exceeds a limit: at which line, and which."""

    def __init__(self, line: int, what: str):
        super().__init__(what)
        self.line = line


class _Stopped(Exception):
    """The text is no TOML from here on; the parser will say why."""


def positions(text: str) -> dict[Path, int]:
    """Line, from 1, of every key and array item of a TOML text. Of a text that is no TOML, those before the error.

    Raises TooMuch when the text exceeds a limit.
    """
    walk = _Walk(text)
    try:
        walk.document()
    except _Stopped:
        pass
    return walk.lines


class _Walk:
    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.tables: dict[Path, int] = {}  # arrays of tables: how many so far
        self.newlines = [match.start() for match in re.finditer("\n", text)]

    def line(self, at: int) -> int:
        return bisect.bisect_left(self.newlines, at) + 1

    def skip(self, pattern: re.Pattern) -> None:
        self.at = pattern.match(self.text, self.at).end()

    def take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def expect(self, literal: str) -> None:
        if not self.take(literal):
            raise _Stopped

    def note(self, path: Path, at: int, *, explicit: bool = True) -> None:
        if len(path) > MAX_DEPTH:
            raise TooMuch(self.line(at), f"nested more than {MAX_DEPTH} deep")
        if explicit:
            self.lines[path] = self.line(at)
        else:
            self.lines.setdefault(path, self.line(at))

    def limit_items(self, count: int, at: int) -> None:
        if count > MAX_ITEMS:
            raise TooMuch(self.line(at), f"a list of more than {MAX_ITEMS} items")

    def document(self) -> None:
        prefix: Path = ()
        while True:
            self.skip(_BLANK)
            if self.at >= len(self.text):
                return
            if self.take("[["):
                prefix = self.header("]]", array=True)
            elif self.take("["):
                prefix = self.header("]", array=False)
            else:
                self.assignment(prefix)
                self.skip(_SPACE)
                if self.text[self.at : self.at + 1] not in ("", "\n", "\r", "#"):
                    raise _Stopped

    def header(self, close: str, *, array: bool) -> Path:
        start = self.at
        parts = self.key()
        self.expect(close)
        path: Path = ()
        for i, part in enumerate(parts):
            path += (part,)
            last = i == len(parts) - 1
            self.note(path, start, explicit=last and not (array and path in self.tables))
            if last and array:
                self.tables[path] = self.tables.get(path, 0) + 1
                self.limit_items(self.tables[path], start)
            if path in self.tables:
                path += (self.tables[path] - 1,)
                self.note(path, start, explicit=last)
        return path

    def assignment(self, prefix: Path) -> None:
        start = self.at
        path = prefix
        parts = self.key()
        for i, part in enumerate(parts):
            path += (part,)
            self.note(path, start, explicit=i == len(parts) - 1)
        self.expect("=")
        self.skip(_SPACE)
        self.value(path)

    def key(self) -> list[str]:
        """Dotted key with the space around it."""
        parts = []
        while True:
            self.skip(_SPACE)
            if len(parts) == MAX_KEY_PARTS:
                raise TooMuch(self.line(self.at), f"a dotted key of more than {MAX_KEY_PARTS} parts")
            parts.append(self.key_part())
            self.skip(_SPACE)
            if not self.take("."):
                return parts

    def key_part(self) -> str:
        bare = _BARE_KEY.match(self.text, self.at)
        if bare:
            self.at = bare.end()
            return bare[0]
        for pattern in _STRINGS[2:]:
            quoted = pattern.match(self.text, self.at)
            if quoted:
                self.at = quoted.end()
                inner = quoted[0][1:-1]
                return inner if quoted[0][0] == "'" else _ESCAPES.sub(_unescaped, inner)
        raise _Stopped

    def value(self, path: Path) -> None:
        if self.take("["):
            self.array(path)
        elif self.take("{"):
            self.inline_table(path)
        elif not self.string():
            scalar = _SCALAR.match(self.text, self.at)
            if scalar is None:
                raise _Stopped
            if len(scalar[0].strip()) > MAX_SCALAR:
                raise TooMuch(self.line(self.at), f"a number of more than {MAX_SCALAR} characters")
            self.at = scalar.end()

    def string(self) -> bool:
        for pattern in _STRINGS:
            match = pattern.match(self.text, self.at)
            if match:
                self.at = match.end()
                return True
        return False

    def array(self, path: Path) -> None:
        index = 0
        while True:
            self.skip(_BLANK)
            if self.take("]"):
                return
            self.note((*path, index), self.at)
            self.value((*path, index))
            index += 1
            self.limit_items(index, self.at)
            self.skip(_BLANK)
            if not self.take(","):
                self.expect("]")
                return

    def inline_table(self, path: Path) -> None:
        self.skip(_SPACE)
        if self.take("}"):
            return
        while True:
            self.skip(_SPACE)
            self.assignment(path)
            self.skip(_SPACE)
            if not self.take(","):
                self.expect("}")
                return


def _unescaped(match: re.Match) -> str:
    digits = match[1] or match[2]
    if digits is None:
        return _SIMPLE.get(match[3], match[3])
    number = int(digits, 16)
    if number > 0x10FFFF:
        raise _Stopped
    return chr(number)
