"""Metadata alone says what is installed, for which hook API and for which core."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muse_core import API_VERSION, __version__
from muse_core.plugins import discover
from muse_core.plugins.versions import admits


def found(distribution):
    return [one for one in discover() if one.distribution == distribution]


def test_an_entry_point_is_found_without_importing_it(install, layer_source):
    module = install("example-wave", layer_source("wave"), key="wave", version="3.1")
    (plugin,) = found("example-wave")
    assert (plugin.version, plugin.entry_point, plugin.module, plugin.refusal) == ("3.1", "wave", module, None)
    assert module not in sys.modules


def test_the_core_comes_first():
    assert discover()[0].distribution == "muse-core"


def test_another_hook_api_is_refused_by_name(install, layer_source):
    install("example-future", layer_source("wave"), group="muse.v7")
    (plugin,) = found("example-future")
    assert plugin.refusal == f"is for hook API 7; muse-core {__version__} offers API 2"
    assert "muse.v2" in plugin.advice


def test_a_distribution_that_serves_this_api_too_is_not_refused(install, layer_source):
    install("example-both", layer_source("wave"))
    info = next(install.site.glob("example_both-*.dist-info"))
    entries = info / "entry_points.txt"
    entries.write_text(entries.read_text() + "[muse.v7]\nboth = nowhere\n")
    assert [plugin.api for plugin in found("example-both")] == [API_VERSION]


@pytest.mark.parametrize(
    "requires, refusal",
    [
        (("muse-core>=0.2,<0.3",), None),
        (("attrs", "Muse_Core~=0.2.0"), None),
        (("muse-core>=0.1,<0.2",), f"needs muse-core>=0.1,<0.2; this is muse-core {__version__}"),
        (("muse-core>=0.2,<0.3; python_version < '3'",), "does not say which muse-core it is for"),
        (("attrs",), "does not say which muse-core it is for"),
        (("muse-core-extras>=0.1",), "does not say which muse-core it is for"),
    ],
)
def test_the_dependency_on_the_core_decides(install, layer_source, requires, refusal):
    install("example-wave", layer_source("wave"), requires=requires)
    (plugin,) = found("example-wave")
    assert plugin.refusal == refusal


def test_an_unreadable_dependency_is_a_refusal_and_not_an_error(install, layer_source):
    install("example-wave", layer_source("wave"), requires=("muse-core >=>= 1",))
    (plugin,) = found("example-wave")
    assert plugin.refusal.startswith("its dependency 'muse-core >=>= 1' cannot be read")


def test_an_entry_point_that_names_an_object_is_refused(install, layer_source):
    install("example-wave", layer_source("wave"), value="some.module:thing")
    (plugin,) = found("example-wave")
    assert "does not name a module" in plugin.refusal


NUMBERS = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
BOUNDS = st.lists(st.tuples(st.sampled_from([">=", "<=", "<", ">"]), NUMBERS), min_size=1, max_size=3)


@given(BOUNDS, NUMBERS)
def test_plain_bounds_agree_with_packaging(bounds, version):
    from packaging.specifiers import SpecifierSet

    text = ",".join(sign + bound for sign, bound in bounds)
    assert admits(f"muse-core{text}", version) == SpecifierSet(text).contains(version, prereleases=True)
