"""Docstrings as Markdown: names with underscores, products and shapes stay what they are."""

from __future__ import annotations

import inspect
import posixpath
import re
import textwrap

CODE = re.compile(r"(``.+?``|`[^`]+`)", flags=re.DOTALL)
ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
SECTION = re.compile(r"\bmathematics §(\d)")
ITEM = re.compile(r"(\*{0,2}[\w⁰₀|]+(?:, \*{0,2}\w+)*): +\S")
MARKS = re.compile(r"([\\*_\[\]#])")


def link(source: str, target: str) -> str:
    """Relative link from one page of the site to another, an ``#anchor`` included."""
    return posixpath.relpath(target, posixpath.dirname(source) or ".")


def prose(docstring: str | None, page: str) -> str:
    """A docstring as paragraphs, lists and code blocks of the page at ``page``."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    return "\n\n".join(_block(block, page) for block in _joined(blocks))


def plain(text: str, page: str) -> str:
    """Running text with its marks escaped outside of code; sections of the mathematics become links."""
    text = ROLE.sub(r"`\1`", text)
    parts = CODE.split(text)
    parts[::2] = [_referring(_escaped(part), page) for part in parts[::2]]
    return "".join(parts)


def cell(text: str, page: str) -> str:
    """Text inside a table."""
    return " ".join(plain(text, page).split()).replace("|", "\\|")


def fenced(code: str, language: str = "python") -> str:
    """A code block."""
    return f"```{language}\n{textwrap.dedent(code).strip()}\n```"


def _joined(blocks: list[str]) -> list[str]:
    """Indented blocks after ``Example::`` together, however many empty lines are between."""
    joined: list[str] = []
    for block in blocks:
        if joined and block.startswith("    ") and (joined[-1].endswith("::") or joined[-1].startswith("    ")):
            joined.append(block) if joined[-1].endswith("::") else joined.append(joined.pop() + "\n\n" + block)
        else:
            joined.append(block)
    return joined


def _block(block: str, page: str) -> str:
    if block.startswith("    "):
        return fenced(block)
    if block.startswith(">>>"):
        return fenced(block, "pycon")
    lines = block.splitlines()
    if lines[0] == "Args:":
        return "**Arguments**\n\n" + _items(textwrap.dedent("\n".join(lines[1:])), page)
    if sum(1 for line in lines if ITEM.match(line)) > 1 and ITEM.match(lines[0]):
        return _items(block, page)
    return plain(re.sub(r"::$", ":", block), page)


def _items(text: str, page: str) -> str:
    """Lines ``name: what it is``, with their continuation lines, as a list."""
    items: list[str] = []
    for line in text.splitlines():
        if ITEM.match(line):
            items.append(line)
        else:
            items[-1] += " " + line.strip()
    named = (item.partition(":") for item in items)
    return "\n".join(f"- `{name}`: {plain(' '.join(what.split()), page)}" for name, _, what in named)


def _escaped(text: str) -> str:
    return MARKS.sub(r"\\\1", text).replace("<", "&lt;")


def _referring(text: str, page: str) -> str:
    return SECTION.sub(lambda found: f"[{found[0]}]({link(page, 'mathematics.md')}#section-{found[1]})", text)
