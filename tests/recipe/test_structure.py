"""Tables become options strictly: nothing is coerced, nothing is dropped, defaults are what the classes say."""

import sys

import attrs
import pytest

from muse_core.component import Component, Requirement
from muse_core.errors import RecipeError
from muse_core.plugins import Loaded, Registry
from muse_core.recipe import check_table, read_recipe
from muse_core.recipe.check import check_source
from muse_core.recipe.nodes import MAX_PROBLEMS
from muse_core.recipe.source import RecipeText


def table(*block, **changes):
    return {"name": "x", "model": {"block": list(block) or ["dense"]}, **changes}


def problems(made, registry):
    with pytest.raises(RecipeError) as caught:
        check_table(made, registry)
    return caught.value.problems


def test_a_bare_name_is_the_component_with_its_defaults(registry):
    bare = check_table(table("memory", data="pages", kernels={"backend": "fast"}), registry).recipe
    full = check_table(table(
        {"use": "memory", "filters": [{"use": "snr"}]}, data={"use": "pages"}, kernels={"backend": [{"use": "fast"}]},
    ), registry).recipe
    assert bare == full
    (memory,) = bare.model.options.block
    assert memory.layer.options.filters[0].options.threshold == 2.0
    assert memory.layer.options.filters[0].path == "model.block[0].filters[0]"


def test_a_table_without_use_configures_the_default(registry):
    recipe = check_table(table(data={"paths": ["a"]}, train={"optimizer": {"beta1": 0.5}}), registry).recipe
    assert recipe.data.source.name == "state-of-the-union"
    assert recipe.data.source.options.paths == ("a",)
    assert (recipe.train.optimizer.name, recipe.train.optimizer.options.beta1) == ("adamw", 0.5)


def test_a_whole_number_may_stand_where_a_number_is_asked(registry):
    recipe = check_table(table({"use": "mixer", "potential": [{"use": "well", "depth": 3}]}), registry).recipe
    depth = recipe.model.options.block[0].layer.options.potential[0].options.depth
    assert depth == 3.0 and type(depth) is float


@pytest.mark.parametrize("wrong", ["4", 4.0, True, None, [4], {"use": 4}])
def test_nothing_else_becomes_a_whole_number(registry, wrong):
    (line,) = problems(table({"use": "memory", "heads": wrong}), registry)
    assert line.startswith("<table>: model.block[0].heads: must be a whole number, not ")


def test_the_kind_of_a_memory_layer_is_kept(registry):
    recipe = check_table(table("memory", "dense"), registry).recipe
    assert [placed.layer.kind for placed in recipe.model.options.block] == ["memory layer", "layer"]


def test_a_key_that_is_no_name_is_quoted_in_its_path(registry):
    (line,) = problems(table({"use": "memory", "a b\n": 1}), registry)
    assert line.startswith("<table>: model.block[0].'a b\\n': memory has no option 'a b\\n'")


def test_so_many_problems_end_the_check(registry):
    lines = problems(table(**{f"key{n}": n for n in range(5000)}), registry)
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "<table>: and more; correct these 100 first"


def test_upgrade_is_asked_only_when_the_recipe_was_written_for_another_version(registry):
    made = table({"use": "mixer", "potential": [{"use": "well", "height": -2.0}]})
    old = check_source(RecipeText(made, "lock", {}), registry, {"lab": "0.7"})
    assert old.recipe.model.options.block[0].layer.options.potential[0].options.depth == 2.0
    for versions in ({}, {"lab": "0.9"}, {"other": "0.7"}):
        with pytest.raises(RecipeError, match="well has no option 'height'"):
            check_source(RecipeText(made, "lock", {}), registry, versions)
    with pytest.raises(RecipeError, match=r"well cannot upgrade options written for lab 0\.8: 0\.8 had no wells"):
        check_source(RecipeText(made, "lock", {}), registry, {"lab": "0.8"})


def test_plugins_that_the_recipe_leaves_out_are_not_found(registry):
    (line, *_) = problems(table(plugins={"deny": ["Lab"]}), registry)
    assert line == "<table>: data.use: there is no source 'state-of-the-union': " \
                   "muse-text-sources provides it and is not installed - pip install ./plugins/text-sources"


def test_allowing_what_is_not_installed_is_a_mistake(registry):
    (line, *_) = problems(table(plugins={"allow": ["Lab", "lap"]}), registry)
    assert line == "<table>: plugins.allow[1]: 'lap' is not installed - did you mean 'lab'?"


def test_an_own_check_that_fails_is_the_plugins_fault_and_no_traceback(registry):
    (line,) = problems(table("raising"), registry)
    assert line == "<table>: model.block[0].size: its check raised KeyError: 1 (a fault of lab 0.9)"


def test_a_clash_is_refused_and_settled_by_the_distribution(registry):
    other = registry.plugins[1]
    twin = Loaded(plugin=attrs.evolve(other.plugin, distribution="twin"), rows=tuple(
        attrs.evolve(row, distribution="twin") for row in other.rows if row.name == "dense"))
    both = Registry((*registry.plugins, twin))
    (line,) = problems(table(), both)
    assert line == ("<table>: model.block[0]: lab 0.9 and twin 0.9 both offer a layer 'dense' "
                    "- write use = 'dense@lab' or 'dense@twin'")
    checked = check_table(table("dense@twin"), both)
    assert checked.recipe.model.options.block[0].layer.distribution == "twin"
    assert checked.resolved["model"]["block"][0]["use"] == "dense@twin"


def test_a_block_has_at_most_64_layers(registry):
    (line,) = problems(table(*[{"use": "dense", "name": f"n{n}"} for n in range(65)]), registry)
    assert line == "<table>: model.block: must be at most 64 long; it is 65 long"


@pytest.mark.parametrize("layer", ["dense", "reader"])
def test_the_work_of_a_check_grows_no_faster_than_the_depth(registry, layer):
    """Counted in calls: a stack of 4096 blocks is checked in seconds, also when every layer lacks its signal."""

    @attrs.frozen(kw_only=True)
    class Reader:
        def requires(self):
            return (Requirement("decay"),)

    reader = attrs.evolve(registry.find("layer", "dense"), component=Component(
        "reader", options=Reader, implementation="m:R"))
    plugins = (*registry.plugins, Loaded(plugin=registry.plugins[1].plugin, rows=(reader,)))
    block = [{"use": layer, "name": f"n{n}"} for n in range(8)]

    def calls(depth):
        made = table(*block)
        made["model"]["depth"] = depth
        loss_mask = 0

        def count(frame, event, argument):
            nonlocal loss_mask
            loss_mask += 1

        sys.setprofile(count)
        try:
            check_table(made, Registry(plugins))
        except RecipeError:
            pass
        finally:
            sys.setprofile(None)
        return loss_mask

    calls(16)
    assert calls(512) <= 2.2 * calls(256)


def test_places_are_lines_of_the_file(registry, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('name = "x"\n[[model.block]]\nuse = "memory"\nheads = 2\n')
    checked = read_recipe(file, registry=registry)
    assert checked.locate("model.block[0].heads") == f"{file}:4"
    assert checked.locate("model.block[0].filters[0]") == f"{file}:2"
    assert checked.locate("train.steps") == str(file)
