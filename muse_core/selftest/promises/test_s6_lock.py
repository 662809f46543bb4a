"""S6: the lock records version and digest of every plugin, resuming refuses drift unless told otherwise, and a locked
run repeats every loss or says what differs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from muse_core.cli.run import main
from muse_core.recipe import to_toml
from muse_core.recipe.lock import read_lock
from muse_core.selftest.promises.runs import events, losses, recipe_table

pytestmark = pytest.mark.promise("S6")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locked")
    path = folder / "x.toml"
    path.write_text(to_toml(recipe_table(folder, train={"steps": 4}, monitors=["gradient-safety"])))
    ended = invoke(path, "--run-dir", folder / "run")
    assert ended.exit_code == 0, ended.output
    return folder / "run"


def test_every_plugin_is_recorded(run, trial):
    rows = {row["name"]: row for row in read_lock(run / "muse.lock.toml").table["plugins"]}
    used = {name for name, row in rows.items() if row["used"]}
    assert used == {"muse-baseline", "muse-gradient-safety", "muse-text-sources", "muse-torch-bk"}
    assert all(row["version"] and len(row["digest"]) >= 32 for row in rows.values())
    trial.say(f"{len(rows)} plugins recorded, drift named and refused, every loss repeated")


def test_a_locked_run_repeats_every_loss(run, tmp_path):
    ended = invoke("--locked", run / "muse.lock.toml", "--run-dir", tmp_path / "again")
    assert ended.exit_code == 0, ended.output
    assert losses(tmp_path / "again") == losses(run) and len(losses(run)) == 4


@pytest.mark.parametrize("part", ["version", "digest"])
def test_drift_of_a_plugin_is_named_and_refused(run, part, tmp_path):
    lock = run / "muse.lock.toml"
    text = lock.read_text()
    row = next(row for row in read_lock(lock).table["plugins"] if row["name"] == "muse-baseline")
    block = text[text.index('name = "muse-baseline"') - 200 :]
    assert row[part] in block
    changed = text.replace(f'{part} = "{row[part]}"', f'{part} = "0.0.{part}"') if part == "digest" else _version(text)
    lock.write_text(changed)
    try:
        for arguments in (("--resume", run), ("--locked", lock, "--run-dir", tmp_path / "other")):
            refused = invoke(*arguments)
            assert refused.exit_code == 2, refused.output
            assert f"plugins.muse-baseline.{part}" in refused.output and "--allow-drift" in refused.output
            assert not (tmp_path / "other" / "recipe.toml").exists()
        allowed = invoke("--resume", run, "--allow-drift")
        assert allowed.exit_code == 0, allowed.output
        assert any(f"plugins.muse-baseline.{part}" in one for one in events(run, "drift")[-1]["differences"])
    finally:
        lock.write_text(text)


def _version(text):
    """The lock with another version of one plugin."""
    before, name, after = text.partition('name = "muse-baseline"')
    if 'version = "' in after.split("[[")[0]:
        head, key, tail = after.partition('version = "')
        return before + name + head + key + "9" + tail
    start = before.rindex('version = "') + len('version = "')
    return before[:start] + "9" + before[start:] + name + after
