"""What the site is made of, without building it: every link resolves, every component has its page, every test that the
mathematics names is there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from types import ModuleType

import pytest

from muse_core.kinds import KINDS
from muse_core.options.describe import options_of
from muse_core.plugins import load_plugins
from muse_core.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs/**/*.md", "*.md", "plugins/*/README.md", "kernels/README.md", "examples/*/README.md")
PAGES = [path for pattern in FOLDERS for path in sorted(ROOT.glob(pattern))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
TEST = re.compile(r"((?:`test_\w+`(?:,| and)?\s+)+)in\s+\[[^]]+\]\(([^)]+)\)")


@pytest.fixture(scope="session")
def generated(writers: ModuleType) -> dict[str, str]:
    return writers.generated_pages()


def anchors(text: str) -> set[str]:
    """Ids of a page's headings, explicit or as mkdocs makes them."""
    found = set(re.findall(r"\{ ?#([\w.-]+) ?\}$", text, flags=re.MULTILINE))
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_resolve_in_a_checkout_and_on_the_site(
    path: Path, writers: ModuleType, generated: dict[str, str]
) -> None:
    """A page that only the site has is no target: its link would be dead where the repository is read as it stands."""
    relative = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    for target in writers.repository.targets(text):
        file, _, anchor = target.partition("#")
        if not file:
            assert anchor in anchors(text), f"{relative} links to #{anchor}"
            continue
        found = posixpath.normpath(posixpath.join(posixpath.dirname(relative), file))
        assert (ROOT / found).exists(), f"{relative} links to {found}, which a checkout does not have"
        shown = writers.repository.page_of(writers.repository.shown_file(found))
        if shown in generated:
            content = generated[shown]
        else:
            content = (ROOT / found).read_text(encoding="utf-8") if found.endswith(".md") else ""
        assert not anchor or anchor in anchors(content), f"{relative} links to {target}"


def test_code_that_a_page_is_written_from_leads_to_it_on_the_site(
    writers: ModuleType, generated: dict[str, str]
) -> None:
    repository = writers.repository
    for source, page in repository.WRITTEN_FROM.items():
        assert (ROOT / source).exists() and page in generated, source
        assert repository.on_the_site("guide/x.md", f"[a](../../{source}#b)") == f"[a](../{page}#b)"


def test_links_of_generated_pages_resolve(generated: dict[str, str]) -> None:
    count = 0
    for page, text in generated.items():
        for target in LINK.findall(text):
            file, _, anchor = target.partition("#")
            found = posixpath.normpath(posixpath.join(posixpath.dirname(page), file))
            path = ROOT / found.removeprefix("repository/") if "repository/" in found else ROOT / "docs" / found
            assert found in generated or path.is_file(), f"{page} links to {target}"
            if anchor:
                content = generated[found] if found in generated else path.read_text(encoding="utf-8")
                assert anchor in anchors(content), f"{page} links to {target}"
            count += 1
    assert count > 100


def test_every_component_has_a_page_with_every_option(writers: ModuleType, generated: dict[str, str]) -> None:
    ours = writers.components.distributions()
    rows = [row for row in load_plugins().rows() if row.distribution in ours]
    assert len(rows) > 20
    for row in rows:
        page = generated[writers.components.component_page(row)]
        assert page.startswith(f"# {row.name}\n")
        for option in options_of(row.component.options):
            assert option.inline or f"### `{option.key}`" in page, f"{row.name}: {option.key}"
    for kind in KINDS:
        assert f"# {kind.capitalize()}" in generated[writers.components.kind_page(kind)]


def test_every_key_of_a_recipe_is_on_its_page(generated: dict[str, str]) -> None:
    page = generated["reference/recipe.md"]
    for option in options_of(Recipe):
        assert f"`{option.key}`" in page or f"[{option.key}]" in page, option.key
    for key in ("train.micro_batch", "data.tokenizer", "train.optimizer", "telemetry.sinks", "init.from"):
        assert f"{{ #{key} }}" in page, key
    for kind in ("optimizer", "schedule", "tokenizer", "sink"):
        assert f"(components/{kind}/index.md)" in page, kind
    assert "`momentum`" in generated["reference/components/optimizer/muon.md"]


def test_no_page_names_this_machine(generated: dict[str, str]) -> None:
    assert not [page for page, text in generated.items() if str(ROOT) in text]


def test_tests_that_the_mathematics_names_exist() -> None:
    text = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    named = 0
    for names, target in TEST.findall(text):
        source = (ROOT / "docs" / target).read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", names):
            assert f"def {name}(" in source, f"{target} has no {name}"
            named += 1
    assert named == len(re.findall(r"`test_\w+`", text)) > 25


def test_the_contents_name_no_page_that_is_missing_and_miss_none(generated: dict[str, str]) -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"- (?:\w+: )?([\w/-]+\.md)$", contents, flags=re.MULTILINE))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    automatic = {page for page in written if page.startswith(("decisions/", "results/"))}
    assert listed - set(generated) == written - automatic
