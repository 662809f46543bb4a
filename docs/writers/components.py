"""A page for every kind of component and for every component of this repository."""

from __future__ import annotations

import ast
import inspect
import posixpath
import tomllib

from muse_core.errors import PluginError
from muse_core.hookspecs import Hooks
from muse_core.kinds import BY_NAME, KINDS
from muse_core.options.describe import options_of
from muse_core.plugins import Registered, Registry
from muse_core.plugins.discovery import normalised

from .options import options_section
from .prose import cell, fenced, link, plain, prose
from .sources import ROOT, file_of, member, members, module

INDEX = "reference/components/index.md"
METHODS = ("provides", "requires")
CONTRACTS = ("muse_core/contracts.py", "muse_core/run_contracts.py")


def pages(registry: Registry) -> dict[str, str]:
    """The index, the kinds and the components. Raises PluginError for a distribution that is missing or broken."""
    rows = _rows(registry)
    written = {INDEX: _index(rows)}
    for kind in KINDS:
        written[kind_page(kind)] = _kind(kind, [row for row in rows if row.kind == kind])
    for row in rows:
        written[component_page(row)] = _component(row)
    return written


def kind_page(kind: str) -> str:
    return f"reference/components/{kind.replace(' ', '-')}/index.md"


def component_page(row: Registered) -> str:
    return posixpath.join(posixpath.dirname(kind_page(row.kind)), f"{row.name}.md")


def distributions() -> dict[str, str]:
    """Normalised distribution → folder, of this repository."""
    folders = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
    names = (tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"] for folder in folders)
    return {normalised(name["name"]): str(folder.relative_to(ROOT)) for name, folder in zip(names, folders)}


def _rows(registry: Registry) -> list[Registered]:
    ours = distributions()
    rows = [row for row in registry.rows() if row.distribution in ours]
    if missing := sorted(set(ours) - {row.distribution for row in rows}):
        causes = [str(problem) for problem in registry.problems if problem.distribution in missing]
        raise PluginError("; ".join(causes) or f"not installed: {', '.join(missing)}; install requirements.txt")
    return rows


def _index(rows: list[Registered]) -> str:
    lines = ["# Components", "", "What the distributions of this project register. `muse plugins list` shows what is "
             "installed here, plugins from elsewhere included."]
    for kind in KINDS:
        found = [row for row in rows if row.kind == kind]
        lines += ["", f"## [{kind.capitalize()}]({link(INDEX, kind_page(kind))})", ""]
        lines.append(_table(found, INDEX) if found else "None yet: the hook is open.")
    return "\n".join(lines)


def _table(rows: list[Registered], page: str) -> str:
    lines = ["| name | what it is |", "|---|---|"]
    for row in rows:
        lines.append(f"| [{row.name}]({link(page, component_page(row))}) | {cell(_first_sentence(row), page)} |")
    return "\n".join(lines)


def _first_sentence(row: Registered) -> str:
    return " ".join((row.component.options.__doc__ or "").split()).partition(". ")[0].rstrip(".")


def _kind(kind: str, rows: list[Registered]) -> str:
    page, hook, protocol = kind_page(kind), BY_NAME[kind].hook, BY_NAME[kind].protocol
    contracts = link(page, "reference/contracts.md")
    parts = [
        f"# {kind.capitalize()}",
        _table(rows, page) if rows else "This project ships none yet: the hook is open.",
        f"## Hook `{hook}`",
        prose(inspect.getdoc(getattr(Hooks, hook)), page),
        f"## Protocol `{protocol}`",
        f"As in [`muse_core.contracts`]({contracts}):",
        fenced(ast.unparse(_protocol(protocol))),
    ]
    return "\n\n".join(parts)


def _protocol(name: str) -> ast.AST:
    """The class of ``muse_core.contracts``, where it is written."""
    found = [one for file in CONTRACTS for one in members(module(file)) if one.name == name]
    return found[0].node


def _component(row: Registered) -> str:
    page, options = component_page(row), row.component.options
    folder = distributions()[row.distribution]
    module_name, _, name = row.component.implementation.partition(":")
    readme = link(page, posixpath.normpath(f"repository/{folder}/README.md"))
    parts = [
        f"# {row.name}",
        prose(options.__doc__, page),
        f"{row.kind.capitalize()} of [{row.distribution}]({readme}). Options `{options.__module__}."
        f"{options.__qualname__}`, implementation `{module_name}.{name}`.",
    ]
    parts.append(fenced(BY_NAME[row.kind].recipe.format(name=row.name), "toml"))
    if any(not option.inline for option in options_of(options)):
        parts += ["## Options", options_section(options, page)]
    parts += _signals(options, page)
    parts += ["## Implementation", prose(member(module(file_of(module_name)), name).doc, page)]
    return "\n\n".join(parts)


def _signals(options: type, page: str) -> list[str]:
    """What the options class says about signals, where it defines any."""
    scope = member(module(file_of(options.__module__)), options.__name__).node
    said = [one.doc for one in members(scope) if one.name in METHODS and one.doc]
    return ["## Signals", *(plain(" ".join(doc.split()), page) for doc in said)] if said else []
