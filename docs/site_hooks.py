"""Hooks of mkdocs: pages read from the code are added, links into the repository stay within the site, and a built page
that would load something from elsewhere is an error."""

from __future__ import annotations

import re
from pathlib import Path

import writers
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from writers import components, repository

LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
LIST = re.compile(r"^((?![-\s|#`]).+\n)(- )", flags=re.MULTILINE)
"""A list right under a paragraph, which this Markdown needs an empty line between, unlike others."""
DECISIONS, RESULTS, COMPONENTS = "Decisions", "Results", "Components"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections of the navigation that follow from files and from the components."""
    config.extra["generated"] = writers.generated_pages()
    generated = config.extra["generated"]
    sections = {
        DECISIONS: _folder(config, "decisions"),
        RESULTS: _folder(config, "results"),
        COMPONENTS: [components.INDEX, *_kinds(generated)],
    }
    config.nav = _filled(config.nav, sections)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages, and whatever of the repository a page links to."""
    for uri, text in config.extra["generated"].items():
        files.append(File.generated(config, uri, content=text))
    pages = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    todo = [path for uri, text in pages if uri not in config.extra["generated"]
            for path in repository.linked(uri, text)]
    todo += components.distributions().values()
    while todo:
        file = repository.shown_file(todo.pop())
        uri = repository.page_of(file)
        if not uri.startswith(repository.SHOWN_UNDER) or files.get_file_from_path(uri):
            continue
        text = repository.shown(file)
        files.append(File.generated(config, uri, content=text))
        if file.endswith(".md"):
            todo += repository.linked(uri, text)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of hand-written pages as the site's own."""
    if page.file.src_uri in config.extra["generated"]:
        return markdown
    return repository.on_the_site(page.file.src_uri, LIST.sub(r"\1\n\2", markdown))


def on_post_build(config: MkDocsConfig) -> None:
    """Raise for a page that loads a script, a style or a picture from another place."""
    for path in Path(config.site_dir).rglob("*.html"):
        for found in LOADED.finditer(path.read_text(encoding="utf-8")):
            if "rel=\"canonical\"" not in found[0]:
                raise PluginError(f"{path.relative_to(config.site_dir)} loads {found[1]}: the site works offline")


def _folder(config: MkDocsConfig, folder: str) -> list[str]:
    pages = sorted(path.name for path in (Path(config.docs_dir) / folder).glob("*.md") if path.name != "index.md")
    return [f"{folder}/index.md", *(f"{folder}/{name}" for name in pages)]


def _kinds(generated: dict[str, str]) -> list[dict[str, list[str]]]:
    """The pages of each kind, its own first."""
    found: dict[str, list[str]] = {}
    for uri in generated:
        kind = uri.removeprefix("reference/components/").split("/")[0]
        if uri.startswith("reference/components/") and uri != components.INDEX:
            found.setdefault(kind, []).append(uri)
    return [{kind.replace("-", " ").capitalize(): pages} for kind, pages in found.items()]


def _filled(nav: list, sections: dict[str, list]) -> list:
    """The navigation with every ``- Name: []`` of these sections filled."""
    filled = []
    for entry in nav:
        if isinstance(entry, dict):
            (name, below), = entry.items()
            if name in sections:
                entry = {name: sections[name]}
            elif isinstance(below, list):
                entry = {name: _filled(below, sections)}
        filled.append(entry)
    return filled
