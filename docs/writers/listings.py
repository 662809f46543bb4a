"""Lists of the pages of a folder: decisions, results. A folder with a page ``index.md`` of its own needs none."""

from __future__ import annotations

import re

from .sources import ROOT

FOLDERS = {
    "decisions": ("Decisions", "Where the project departs from its original design, and why."),
    "results": ("Results", "Measurements, each with the command that makes it."),
}


def pages() -> dict[str, str]:
    return {
        f"{folder}/index.md": _listing(folder, title, said)
        for folder, (title, said) in FOLDERS.items()
        if not (ROOT / "docs" / folder / "index.md").is_file()
    }


def _listing(folder: str, title: str, said: str) -> str:
    found = sorted((ROOT / "docs" / folder).glob("*.md"))
    lines = [f"- [{_title(path.read_text(encoding='utf-8'))}]({path.name})" for path in found]
    return "\n".join([f"# {title}", "", said, "", *lines])


def _title(text: str) -> str:
    found = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    assert found, "a page starts with its title"
    return found[1]
