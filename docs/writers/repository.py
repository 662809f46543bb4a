"""Links from the documentation into the rest of the repository: what they lead to becomes part of the site, so that it
needs no server of code beside it. A link to code that a reference page is written from leads to that page on the site,
and to the code itself in a checkout, where the page does not exist."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from .prose import link
from .sources import ROOT

DOCS = "docs/"
SHOWN_UNDER = "repository/"
TARGET = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
WRITTEN_FROM = {
    "muse_core/recipe/schema.py": "reference/recipe.md",
    "plugins": "reference/components/index.md",
    "muse_core/cli": "reference/command-line.md",
    "muse_core/metrics/schema.py": "reference/telemetry.md",
    "muse_core/contracts.py": "reference/contracts.md",
    "muse_core/model/context.py": "reference/contracts.md",
    "kernels/src/muse_kernels": "reference/kernels.md",
}
"""File or folder of the repository → the page of the site that is written from it."""
LANGUAGES = {".py": "python", ".toml": "toml", ".ini": "ini", ".txt": "text", ".yml": "yaml"}


def shown_file(path: str) -> str:
    """The file that a link to ``path`` shows: itself, or the index or README of a folder without a page of its own.

    Pages of the site are mkdocs' to check. Raises FileNotFoundError for what else is not in the repository.
    """
    if path in WRITTEN_FROM:
        return path
    if (ROOT / path).is_dir():
        index = f"{path}/index.md"
        if path.startswith(DOCS):
            return index
        path = posixpath.normpath(f"{path}/README.md")
    if not path.startswith(DOCS) and not (ROOT / path).is_file():
        raise FileNotFoundError(f"{path} is not there")
    return path


def page_of(file: str) -> str:
    """The page or asset of the site that shows a file: docs/x.md → x.md, README.md → repository/README.md, a file of
    code → the page that is written from it, otherwise a page with its text."""
    if file in WRITTEN_FROM:
        return WRITTEN_FROM[file]
    if file.startswith(DOCS) and not file.endswith(".py"):
        return file.removeprefix(DOCS)
    return f"{SHOWN_UNDER}{file}" if file.endswith(".md") else f"{SHOWN_UNDER}{file}.md"


def repository_path(page: str) -> str:
    """Where the text of a hand-written page stands in the repository."""
    return page.removeprefix(SHOWN_UNDER) if page.startswith(SHOWN_UNDER) else f"{DOCS}{page}"


def on_the_site(page: str, text: str) -> str:
    """The text of a hand-written page with its links to files of the repository as links within the site.

    Raises FileNotFoundError for a link that leads nowhere.
    """
    def within(target: str) -> str:
        path, mark, anchor = target.partition("#")
        return link(page, page_of(shown_file(_resolved(page, path)))) + mark + anchor

    return _with_links(text, within)


def targets(text: str) -> list[str]:
    """Every relative link of a page outside of code, as it is written, in order."""
    found: list[str] = []
    _with_links(text, lambda target: found.append(target) or target, anchors=True)
    return found


def linked(page: str, text: str) -> list[str]:
    """Paths of the repository that a hand-written page links to."""
    return [_resolved(page, target.partition("#")[0]) for target in targets(text) if not target.startswith("#")]


def shown(path: str) -> str:
    """The page that shows a file from outside docs/: Markdown as it is, code without being searched."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
    return f"---\nsearch: {{ exclude: true }}\n---\n\n# {path}\n\n````{language}\n{text}````\n"


def _resolved(page: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(page)), target))


def _with_links(text: str, change: Callable[[str], str], *, anchors: bool = False) -> str:
    """The text with every relative link outside of code changed; ``anchors``: also those within the page."""
    elsewhere = ("mailto:",) if anchors else ("mailto:", "#")

    def changed(found: re.Match[str]) -> str:
        return found[1] if "://" in found[1] or found[1].startswith(elsewhere) else change(found[1])

    lines, fence = text.splitlines(keepends=True), ""
    for number, line in enumerate(lines):
        opening = re.match(r" {0,3}(`{3,})", line)
        if opening and fence in ("", opening[1]):
            fence = "" if fence else opening[1]
        elif not fence and not line.startswith("    "):
            lines[number] = TARGET.sub(changed, line)
    return "".join(lines)
