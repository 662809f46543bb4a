"""Text that a command is given, on its command line or in a file."""

from __future__ import annotations

import sys
from pathlib import Path


def given_text(text: str | None, file: Path | None, option: str, meaning: str) -> str:
    """The text of ``option``, or that of the file of ``option``-file, where ``-`` is the standard input.

    Raises RecipeError where there is none, two, one that is not UTF-8 or cannot be read, and for a text that is the
    name of a file: its contents are meant.
    """
    from muse_core.data.plain_text import unicode_of
    from muse_core.errors import RecipeError

    if (text is None) == (file is None):
        raise RecipeError(f"give {meaning} by either {option} or {option}-file (- is the standard input)")
    if text is not None:
        if any(0xD800 <= ord(character) < 0xE000 for character in text):
            raise RecipeError(f"{option}: is not UTF-8 text; write it in UTF-8")
        if _names_a_file(text):
            raise RecipeError(f"{option} takes a text, and {text!r} is a file: {option}-file reads it")
        return text
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else Path(str(file)).read_bytes()
        return unicode_of(raw)
    except OSError as error:
        raise RecipeError(f"{option}-file {file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RecipeError(f"{option}-file {file}: {error}") from error


def _names_a_file(text: str) -> bool:
    """A name with a suffix or a folder in it; a lone word may well be both a text and a file."""
    path = Path(text)
    try:
        return bool(path.suffix or len(path.parts) > 1) and path.is_file()
    except (OSError, ValueError):  # too long for a name
        return False
