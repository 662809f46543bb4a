"""Finding what a recipe names, and saying why it is not there."""

import attrs
import pytest

from muse_core.component import Component
from muse_core.kinds import KINDS
from muse_core.model.options import Placed
from muse_core.options.check import AROUND
from muse_core.options.describe import is_inline, key_of
from muse_core.plugins import Discovered, Loaded, Registered, Registry, UnknownComponent, load_plugins
from muse_core.plugins.bundled import PROVIDES
from muse_core.recipe.schema import Data, Matched


def registered(kind, name, distribution, version="1.0"):
    component = Component(name, options=object, implementation="m:C")
    return Registered(kind=kind, component=component, distribution=distribution, version=version, entry_point="e",
                      module="m")


def registry_of(*rows):
    loaded = []
    for row in rows:
        plugin = Discovered(distribution=row.distribution, version=row.version, entry_point="e", module="m", api=1)
        loaded.append(Loaded(plugin=plugin, rows=(row,)))
    return Registry(tuple(loaded))


def message(registry, kind, name):
    with pytest.raises(UnknownComponent) as caught:
        registry.find(kind, name)
    return str(caught.value)


def test_a_clash_names_both_distributions_with_their_versions():
    registry = registry_of(registered("layer", "wave", "a", "1.2"), registered("memory layer", "wave", "b", "3"))
    assert message(registry, "layer", "wave") == (
        "b 3 and a 1.2 both offer a layer 'wave' - write use = 'wave@b' or 'wave@a'")
    assert registry.find("layer", "wave@b").version == "3"
    assert registry.reference("layer", "wave", "b") == "wave@b"
    (clash,), broken = registry.problems, registry.broken
    assert broken == (), "a run whose recipe is clear is none the worse for it"
    assert "offers a layer 'wave' like b 3" in str(clash)


def test_no_clash_between_kinds_that_share_no_names():
    registry = registry_of(registered("layer", "wave", "a"), registered("filter", "wave", "b"))
    assert registry.problems == ()
    assert registry.find("filter", "wave").distribution == "b"
    assert registry.reference("layer", "wave", "a") == "wave"


def test_a_layer_may_be_a_memory_layer_but_not_the_other_way_round():
    registry = registry_of(registered("layer", "wave", "a"), registered("memory layer", "trace", "b"))
    assert registry.find("layer", "trace").kind == "memory layer"
    assert "there is no memory layer 'wave': 'wave' is a layer of a" in message(registry, "memory layer", "wave")


def test_a_name_of_another_kind_hides_no_near_one():
    registry = registry_of(registered("layer", "wave", "a"), registered("filter", "waves", "b"))
    assert message(registry, "filter", "wave").endswith("'wave' is a layer of a - did you mean 'waves'?")


@pytest.mark.parametrize(
    "kind, name, expected",
    [
        ("layer", "waev", "there is no layer 'waev' - did you mean 'wave'?"),
        ("layer", "Wave", "there is no layer 'Wave' - did you mean 'wave'?"),
        ("layer", "xyz", "there is no layer 'xyz' - installed layers: wave"),
        ("filter", "xyz", "there is no filter 'xyz' - installed filters: none"),
        ("layer", "wave@b", "there is no layer 'wave@b': 'b' is not installed - a offers 'wave'"),
        ("layer", "wave@c", "there is no layer 'wave@c': c does not offer it - a does"),
        ("layer", "fast-weights", "there is no layer 'fast-weights': muse-fast-weights provides it and is not installed"
                             " - pip install ./plugins/fast-weights"),
    ],
)
def test_a_missing_component_says_what_to_do(kind, name, expected):
    registry = registry_of(registered("layer", "wave", "a"), registered("router", "top", "c"))
    assert message(registry, kind, name) == expected


def test_several_that_offer_a_name_are_told_together():
    registry = registry_of(registered("layer", "wave", "a"), registered("layer", "wave", "b"))
    assert message(registry, "layer", "wave@c") == (
        "there is no layer 'wave@c': 'c' is not installed - a and b offer 'wave'"
    )


def test_the_cause_of_a_broken_provider_is_told(install):
    install("muse-quantum", "raise RuntimeError('no qubits')")
    registry = load_plugins(strict=False)
    assert "muse-quantum did not load (muse plugins list)" in message(registry, "layer", "zzzzzz")


def test_the_cause_of_a_broken_bundled_provider_is_told():
    broken = Discovered(distribution="muse-fast-weights", version="0.1.0", entry_point="fast-weights", module="m",
                        api=2,
                        refusal="is for hook API 2")
    from muse_core.plugins import load_plugin

    registry = Registry((load_plugin(broken),))
    assert message(registry, "layer", "fast-weights") == (
        "there is no layer 'fast-weights': muse-fast-weights provides it and does not load: is for hook API 2")


def test_what_a_list_leaves_out_is_said():
    whole = registry_of(registered("memory layer", "fast-weights", "muse-fast-weights"))
    registry = whole.only(deny=["muse-fast-weights"])
    assert message(registry, "layer", "fast-weights") == (
        "there is no layer 'fast-weights': muse-fast-weights provides it and is left out by plugins.deny")


def test_keys_of_the_tables_around_components_are_those_of_the_schema():
    around = {"layer": Placed, "initializer": Matched, "source": Data}
    own = {
        namespace: {key_of(field) for field in attrs.fields(cls) if not is_inline(field)}
        for namespace, cls in around.items()
    }
    assert own == AROUND


def test_rows_come_in_the_order_of_kinds_then_names():
    rows = [registered(kind, name, "a") for kind in reversed(KINDS) for name in ("b", "a")]
    found = [(row.kind, row.name) for row in registry_of(*rows).rows()]
    assert found == [(kind, name) for kind in KINDS for name in ("a", "b")]


def test_the_table_of_bundled_components_is_what_the_bundled_plugins_register():
    for loaded in load_plugins(strict=False).plugins:
        distribution = loaded.plugin.distribution
        if distribution in PROVIDES:
            assert sorted((row.kind, row.name) for row in loaded.rows) == sorted(PROVIDES[distribution])


def test_every_bundled_folder_is_in_the_table(pytestconfig):
    folders = {f"muse-{path.parent.name}" for path in pytestconfig.rootpath.glob("plugins/*/pyproject.toml")}
    assert folders == set(PROVIDES)
