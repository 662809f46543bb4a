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
PAGES = sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("plugins/*/README.md"))
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
def test_links_of_a_page_resolve(path: Path, writers: ModuleType, generated: dict[str, str]) -> None:
    relative = path.relative_to(ROOT).as_posix()
    page = relative.removeprefix("docs/") if relative.startswith("docs/") else f"repository/{relative}"
    text = path.read_text(encoding="utf-8")
    for target in writers.repository.targets(text):
        file, _, anchor = target.partition("#")
        if not file:
            assert anchor in anchors(text), f"{relative} links to #{anchor}"
            continue
        found = posixpath.normpath(posixpath.join(posixpath.dirname(relative), file))
        if found.removeprefix("docs/") in generated:
            content = generated[found.removeprefix("docs/")]
        elif not found.endswith(".svg"):  # pictures of runs are drawn on the machine that measures
            assert (ROOT / found).exists(), f"{page} links to {found}"
            content = (ROOT / found).read_text(encoding="utf-8") if found.endswith(".md") else ""
        assert not anchor or anchor in anchors(content), f"{relative} links to {target}"


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
    for key in ("train.micro_batch", "data.tokenizer.bpe.vocabulary", "train.optimizer.muon.momentum", "init.from"):
        assert f"{{ #{key} }}" in page, key


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
