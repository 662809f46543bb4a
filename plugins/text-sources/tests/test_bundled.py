"""Text that is always there: complete, clean, and refused when damaged."""

import sysconfig

import pytest
from muse_text_sources import state_of_the_union

from muse_core.errors import DataError
from muse_core.testing import build_component


@pytest.fixture(scope="module")
def addresses():
    return list(build_component("source", "state-of-the-union").documents())


def test_every_address_is_there(addresses):
    assert len(addresses) == 233
    assert sum(len(address.text.encode()) for address in addresses) == 10_761_159
    assert addresses[0].name == "1790_george_washington_n" and addresses[-1].name == "2021_joseph_r_biden_d"


def test_addresses_are_clean_prose(addresses):
    characters = set("".join(address.text for address in addresses))
    assert len(characters) == 96 and all(map(str.isprintable, characters))
    assert all(address.text == address.text.strip() for address in addresses)
    assert any("4 and 4 1/2 per cent" in address.text for address in addresses)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_corpus_is_refused_in_a_sentence(tmp_path, monkeypatch, damage):
    content = bytearray(state_of_the_union.CORPUS.read_bytes())
    path = tmp_path / "state-of-the-union.parquet"
    content[len(content) // 2] ^= 1
    if damage != "delete":
        path.write_bytes(content if damage == "flip" else content[:-1])
    monkeypatch.setattr(state_of_the_union, "CORPUS", path)
    with pytest.raises(DataError, match="state-of-the-union.parquet: .* install muse-text-sources again") as refused:
        build_component("source", "state-of-the-union")
    assert refused.value.exit_code == 3


def test_the_python_library_comes_without_tests_and_packages():
    documents = list(build_component("source", "python-library").documents())
    names = [document.name for document in documents]
    assert {"dataclasses.py", "json/decoder.py"} <= set(names) and names == sorted(names)
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert sum(len(document.text) for document in documents) > 5_000_000


def test_a_python_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="no library sources"):
        build_component("source", "python-library")


def test_sources_of_installed_packages_follow(tmp_path, monkeypatch):
    package = tmp_path / "a_package_with_sources"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 1\n")
    (package / "latin.py").write_bytes(b"# \xe9\n")
    (package / "tests" / "test_value.py").write_text("assert True\n")
    monkeypatch.syspath_prepend(tmp_path)
    plain = build_component("source", "python-library")
    more = build_component("source", "python-library", {"packages": [package.name]})
    assert more.fingerprint() != plain.fingerprint()
    own = [document for document in more.documents() if document.name.startswith("a_package")]
    assert [(one.name, one.text) for one in own] == [("a_package_with_sources/__init__.py", "VALUE = 1\n")]
    for name in ("no_such_package", "json.decoder", "../x"):
        with pytest.raises(DataError, match="no installed package"):
            build_component("source", "python-library", {"packages": [name]})
