"""The lock says what a run's numbers depend on, and a difference is named."""

import copy
import hashlib
import subprocess

import attrs
import pytest

from muse_core.component import walk
from muse_core.data.kept import read_kept
from muse_core.errors import RecipeError, StorageError
from muse_core.model.kernels import BackendSelection
from muse_core.plugins import load_plugins
from muse_core.plugins.digest import distribution_digest, package_digest
from muse_core.recipe import check_table, read_recipe, to_toml
from muse_core.recipe.lock import Difference, Lock, differences, make_lock, read_lock, source_commit, used_distributions

TABLE = {"name": "x", "seed": 3, "data": {"use": "pages"}, "model": {"block": ["wave"]}}


@pytest.fixture
def checked(install, layer_source):
    """A recipe on a layer and a source of two installed distributions, beside one that it does not use."""
    source = layer_source("pages", "example_pages_plugin").replace("muse_layers", "muse_sources")
    install("example-pages", source)
    install("example-wave", layer_source("wave", "example_wave_plugin"))
    install("example-idle", layer_source("idle", "example_idle_plugin"))
    return check_table(TABLE, load_plugins(strict=False, allow=["example-pages", "example-wave", "example-idle"]))


def lock_of(checked, **changes):
    chosen = BackendSelection(operation="scan", backend="fast", implementation="m:f", refused=())
    arguments = {"device": "cpu", "kernels": {"scan key=4": chosen}, "digests": {"data": "abc"}} | changes
    return make_lock(checked, **arguments)


def changed(lock, *path, value):
    table = copy.deepcopy(lock.table)
    holder = table
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return Lock(table, lock.where)


def plugin(lock, name):
    return next(number for number, row in enumerate(lock.table["plugins"]) if row["name"] == name)


def test_of_a_run_directory_the_lock_is_asked_for(tmp_path):
    with pytest.raises(RecipeError, match="is a directory - name the lock in it: .*muse.lock.toml"):
        read_lock(tmp_path)


def test_a_difference_shows_the_beginning_of_a_digest():
    one, other, word = "0123456789ab" + "c" * 52, "f" * 64, "a word of " + "e" * 63
    assert str(Difference(what="digests.data", locked=one, here=repr(other))) == (
        "digests.data: the lock says 0123456789ab…, here it is 'ffffffffffff…'"
    )
    assert word in str(Difference(what="x", locked=word, here="3"))


def test_a_lock_survives_its_file_and_gives_the_same_recipe(checked, tmp_path):
    lock = lock_of(checked)
    (tmp_path / "muse.lock.toml").write_text(to_toml(lock.table))
    again = read_lock(tmp_path / "muse.lock.toml")
    assert differences(again, lock) == ()
    assert again.table == lock.table
    assert again.check(registry=checked.registry).recipe == checked.recipe
    assert again.check(["seed=4"], checked.registry).recipe.seed == 4


def test_used_plugins_are_marked(checked):
    assert used_distributions(checked) == {"example-pages", "example-wave"}
    assert {row["name"]: row["used"] for row in lock_of(checked).table["plugins"]} == {
        "example-idle": False, "example-pages": True, "example-wave": True}


def test_every_difference_that_could_change_numbers_is_named(checked):
    lock = lock_of(checked)
    wave = plugin(lock, "example-wave")
    for path, value, name in [
        (("environment", "torch"), "0.1", "environment.torch"),
        (("environment", "device"), "cuda:0", "environment.device"),
        (("digests", "data"), "xyz", "digests.data"),
        (("packages", 0, "digest"), "xyz", "packages.muse-core.digest"),
        (("plugins", wave, "version"), "9", "plugins.example-wave.version"),
        (("plugins", wave, "digest"), "xyz", "plugins.example-wave.digest"),
        (("kernels", 0, "backend"), "slow", "kernels.scan key=4.backend"),
        (("recipe", "train", "steps"), 7, "recipe.train.steps"),
        (("recipe", "model", "block", 0, "size"), 5, "recipe.model.block[0].size"),
    ]:
        (difference,) = differences(changed(lock, *path, value=value), lock)
        assert difference.what == name
        assert difference.locked == repr(value)


def test_what_cannot_change_numbers_is_no_difference(checked):
    lock = lock_of(checked)
    idle = plugin(lock, "example-idle")
    for path in [("environment", "platform"), ("plugins", idle, "digest"), ("plugins", idle, "version")]:
        assert differences(changed(lock, *path, value="xyz"), lock) == ()


def test_a_missing_plugin_is_a_difference(checked):
    lock = lock_of(checked)
    table = copy.deepcopy(lock.table)
    del table["plugins"][plugin(lock, "example-wave")]
    assert {one.what for one in differences(lock, Lock(table, ""))} == {
        "plugins.example-wave.version", "plugins.example-wave.digest"}


def test_a_run_that_cannot_be_read_here_names_the_plugins_that_made_it(checked):
    lock = lock_of(checked)
    wave = plugin(lock, "example-wave")
    elsewhere = changed(changed(lock, "plugins", wave, "name", value="wave-of-others"), "recipe", "model", "block",
                        value=["roller"])
    with pytest.raises(RecipeError) as refused:
        elsewhere.check(registry=checked.registry)
    first, second = str(refused.value).splitlines()
    assert "the run was made with wave-of-others 1.0.0 (not installed here) - install" in first
    assert "there is no layer 'roller'" in second
    newer = changed(changed(lock, "plugins", wave, "version", value="7"), "recipe", "model", "block", value=["roller"])
    with pytest.raises(RecipeError, match=r"example-wave 7 \(here 1.0.0\)"):
        newer.check(registry=checked.registry)
    with pytest.raises(RecipeError) as refused:
        changed(lock, "recipe", "model", "block", value=["roller"]).check(registry=checked.registry)
    assert str(refused.value).count("\n") == 0, "nothing is missing"


def test_a_run_means_the_plugins_that_made_it_where_another_has_their_names(checked, install, layer_source, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(checked.resolved))
    install("example-twin", layer_source("wave", "example_twin_plugin"))
    names = ["example-pages", "example-wave", "example-twin"]
    both, lock = load_plugins(strict=False, allow=names), lock_of(checked)
    with pytest.raises(RecipeError, match="example-twin 1.0.0 and example-wave 1.0.0 both offer a layer 'wave'"):
        read_recipe(file, registry=both)
    read = read_recipe(file, registry=both, made_with=lock.made_with)
    again = lock.check(registry=both)
    assert read.recipe == again.recipe == checked.recipe and read.resolved == checked.resolved
    assert {use.distribution for use in walk(read.recipe.model.options)} == {"example-wave"}
    with pytest.raises(RecipeError, match="both offer"):
        read_recipe(file, registry=both, made_with=names)


def test_a_run_that_names_a_distribution_is_what_its_lock_says(checked, install, layer_source):
    install("example-twin", layer_source("wave", "example_twin_plugin"))
    both = load_plugins(strict=False, allow=["example-pages", "example-wave", "example-twin"])
    for named in ("wave@example-wave", "wave@example-twin"):
        begun = check_table({**TABLE, "model": {"block": [named]}}, both)
        lock = make_lock(begun, device="cpu")
        again = lock.check(registry=both)
        assert again.resolved["model"]["block"][0]["use"] == named and again.recipe == begun.recipe
        assert differences(lock, make_lock(again, device="cpu")) == ()


def test_a_run_whose_tokenizer_is_of_a_plugin_that_is_not_here_names_the_plugin(checked, tmp_path):
    described = '{"kind": "syllables"}'
    lock = lock_of(checked, digests={"data": "abc", "tokenizer": hashlib.sha256(described.encode()).hexdigest()})
    (tmp_path / "tokenizer.json").write_text(described)
    (tmp_path / "muse.lock.toml").write_text(to_toml(lock.table))
    with pytest.raises(StorageError, match=r"tokenizer.json: is not a tokenizer .* no tokenizer 'syllables'"):
        read_kept(tmp_path)
    elsewhere = changed(lock, "plugins", plugin(lock, "example-wave"), "name", value="tokens-of-others")
    (tmp_path / "muse.lock.toml").write_text(to_toml(elsewhere.table))
    with pytest.raises(RecipeError) as refused:
        read_kept(tmp_path)
    first, second = str(refused.value).splitlines()
    assert "the run was made with tokens-of-others 1.0.0 (not installed here) - install" in first
    assert "there is no tokenizer 'syllables'" in second


def test_the_plugin_of_a_chosen_kernel_counts_as_used(checked, install, layer_source):
    install("example-kernels", layer_source("fast", "example_kernels_plugin").replace("layers", "kernel_backends"))
    registry = load_plugins(strict=False)
    again = attrs.evolve(checked, registry=registry)

    def used(lock):
        return lock.table["plugins"][plugin(lock, "example-kernels")]["used"]

    assert used(lock_of(again))
    assert not used(lock_of(again, kernels={}))


@pytest.mark.parametrize(
    "text, expected",
    [
        ('format = 1\nname = "x"', "not a lock of format 1; give the muse.lock.toml of a run"),
        ("format = 2\n[recipe]\na = 1", "not a lock of format 1"),
        ("format = 1\nplugins = 3\n[recipe]\na = 1", "plugins: must be a list of tables; the lock is damaged"),
        ("format = 1\ndigests = 3\n[recipe]\na = 1", "digests: must be a table; the lock is damaged"),
    ],
)
def test_a_file_that_is_no_lock_is_refused(tmp_path, text, expected):
    (tmp_path / "muse.lock.toml").write_text(text)
    with pytest.raises(RecipeError, match=expected):
        read_lock(tmp_path / "muse.lock.toml")


def test_the_commit_of_the_recipe_is_recorded(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('name = "x"')

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert source_commit(str(file)) == {"commit": head, "modified": False}
    file.write_text("changed = 1")
    assert source_commit(str(file)) == {"commit": head, "modified": True}


class TestDigest:
    def test_of_a_package_is_of_its_files_and_not_of_where_they_lie(self, tmp_path, monkeypatch):
        digests = []
        for place in ("a", "b"):
            package = tmp_path / place / "example_digest"
            package.mkdir(parents=True)
            (package / "__init__.py").write_text("x = 1")
            (package / "__pycache__").mkdir()
            (package / "__pycache__" / "x.pyc").write_text(place)
            with monkeypatch.context() as patch:
                patch.syspath_prepend(str(tmp_path / place))
                digests.append(package_digest(["example_digest"]))
        assert digests[0] == digests[1]
        (package / "__init__.py").write_text("x = 2")
        monkeypatch.syspath_prepend(str(tmp_path / "b"))
        assert package_digest(["example_digest"]) != digests[0]

    def test_of_a_distribution_follows_its_module(self, install, layer_source):
        module = install("example-wave", layer_source("wave", "example_wave_plugin"))
        registry = load_plugins(strict=False, allow=["example-wave"])
        before = distribution_digest(registry, "example-wave")
        file = install.site / f"{module}.py"
        file.write_text(file.read_text() + "\n")
        assert distribution_digest(registry, "example-wave") != before
