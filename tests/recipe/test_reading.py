"""Files that are no recipe, recipes that extend others, and overrides."""

import os

import pytest

from muse_core.errors import RecipeError
from muse_core.recipe.positions import MAX_BYTES
from muse_core.recipe.reading import MAX_EXTENDS, parse, read_source


def problem(call, *arguments):
    with pytest.raises(RecipeError) as caught:
        call(*arguments)
    (line,) = caught.value.problems
    return line


class TestFiles:
    def test_missing_with_a_near_name(self, tmp_path):
        (tmp_path / "phase2_base.toml").write_text("")
        line = problem(read_source, tmp_path / "phase2_bsae.toml")
        assert line.endswith(f"phase2_bsae.toml: no such file - did you mean {tmp_path}/phase2_base.toml?")

    def test_directory(self, tmp_path):
        (tmp_path / "a.toml").write_text("")
        line = problem(read_source, tmp_path)
        assert line == f"{tmp_path}: a directory; a recipe is one TOML file, such as {tmp_path}/a.toml"

    def test_directory_of_a_run(self, tmp_path):
        for name in ("muse.lock.toml", "recipe.toml", "source.toml"):
            (tmp_path / name).write_text("")
        line = problem(read_source, tmp_path)
        assert f"this one holds a run - its recipe is {tmp_path}/recipe.toml, and --resume goes on with it" in line
        assert "muse.lock.toml" not in line

    def test_binary(self, tmp_path):
        file = tmp_path / "x.toml"
        file.write_bytes(b"name = 'x'\n\xff\xfe\x00")
        assert problem(read_source, file) == f"{file}:2: not UTF-8 text; is this a recipe?"

    def test_too_big(self, tmp_path):
        file = tmp_path / "x.toml"
        file.write_bytes(b"#" * MAX_BYTES)
        assert read_source(file).table == {}
        file.write_bytes(b"#" * (MAX_BYTES + 1))
        assert problem(read_source, file) == f"{file}: more than 256 KiB; a recipe is a small text"

    def test_a_named_pipe_does_not_hang(self, tmp_path):
        file = tmp_path / "x.toml"
        os.mkfifo(file)
        assert problem(read_source, file) == f"{file}: not a file; a recipe is one TOML file"

    @pytest.mark.parametrize("name", ["a\0b.toml", "x" * 300 + ".toml"])
    def test_an_impossible_name(self, name):
        assert "cannot be read" in problem(read_source, name)

    def test_windows_line_ends_and_a_byte_order_mark_are_text(self, tmp_path):
        file = tmp_path / "x.toml"
        file.write_bytes(b"\xef\xbb\xbfname = 'x'\r\n[train]\r\nsteps = 3\r\n")
        source = read_source(file)
        assert source.table == {"name": "x", "train": {"steps": 3}}
        assert source.locate(("train", "steps")) == f"{file}:3"


class TestExtends:
    @pytest.fixture
    def write(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return lambda name, text: (tmp_path / name).write_text(text)

    def test_tables_merge_and_lists_replace(self, write):
        write("base.toml", '[train]\nsteps = 1\nlearning_rate = 2.0\n'
                           '[[model.block]]\nuse = "a"\n[[model.block]]\nuse = "b"')
        write("x.toml", 'extends = "base.toml"\n[train]\nsteps = 3\n[[model.block]]\nuse = "c"')
        source = read_source("x.toml")
        assert source.table == {"train": {"steps": 3, "learning_rate": 2.0}, "model": {"block": [{"use": "c"}]}}
        assert source.locate(("train", "steps")) == "x.toml:3"
        assert source.locate(("train", "learning_rate")) == "base.toml:3"
        assert source.locate(("model", "block", 0, "use")) == "x.toml:5"
        assert ("model", "block", 1) not in source.places

    def test_another_use_drops_the_options_of_the_first(self, write):
        write("base.toml", 'data = { use = "files", paths = ["a"], tokenizer = "bpe" }\n'
                           '[train]\noptimizer = { use = "muon", momentum = 0.9 }')
        write("x.toml", 'extends = "base.toml"\ndata.use = "pages"\ntrain.optimizer.use = "adamw"')
        assert read_source("x.toml").table == {
            "data": {"use": "pages", "tokenizer": "bpe"}, "train": {"optimizer": {"use": "adamw"}}}

    def test_the_same_use_keeps_them(self, write):
        write("base.toml", 'data = { use = "files", paths = ["a"] }')
        write("x.toml", 'extends = "base.toml"\ndata = { use = "files", field = "text" }')
        assert read_source("x.toml").table == {"data": {"use": "files", "paths": ["a"], "field": "text"}}

    def test_a_bare_name_below_is_a_table_with_use(self, write):
        write("base.toml", 'data.tokenizer = "bpe"')
        write("x.toml", 'extends = "base.toml"\ndata.tokenizer.vocabulary = 500')
        assert read_source("x.toml").table == {"data": {"tokenizer": {"use": "bpe", "vocabulary": 500}}}

    def test_the_base_is_found_beside_the_recipe(self, write, tmp_path):
        (tmp_path / "sub").mkdir()
        write("base.toml", "seed = 3")
        write("sub/x.toml", 'extends = "../base.toml"')
        source = read_source("sub/x.toml")
        assert source.table == {"seed": 3}
        assert source.locate(("seed",)) == "base.toml:1"

    def test_a_circle_is_refused(self, write):
        write("a.toml", 'extends = "b.toml"')
        write("b.toml", '\nextends = "a.toml"')
        assert problem(read_source, "a.toml") == (
            "a.toml:1: extends: b.toml:2: extends: a.toml extends this recipe in turn")

    def test_a_long_chain_is_refused(self, write):
        for number in range(MAX_EXTENDS + 1):
            write(f"{number}.toml", f'extends = "{number + 1}.toml"')
        write(f"{MAX_EXTENDS + 1}.toml", "")
        assert problem(read_source, "0.toml").endswith("a chain of more than 8 recipes")
        assert read_source("2.toml").table == {}


class TestOverrides:
    def overridden(self, text, *overrides):
        from muse_core.recipe.reading import overridden

        return overridden(parse(text, "x.toml"), overrides)

    @pytest.mark.parametrize(
        "override, expected",
        [
            ("train.steps=5", {"train": {"steps": 5}}),
            ("train.steps = 5", {"train": {"steps": 5}}),
            ("train.rate=1e-3", {"train": {"rate": 1e-3}}),
            ("train.compile=true", {"train": {"compile": True}}),
            ("train.optimizer=muon", {"train": {"optimizer": "muon"}}),
            ("train.optimizer='muon'", {"train": {"optimizer": "muon"}}),
            ('name="a b"', {"name": "a b"}),
            ("init.from=runs/a-1", {"init": {"from": "runs/a-1"}}),
            ("data={use='files', paths=['a','b']}", {"data": {"use": "files", "paths": ["a", "b"]}}),
            ("name=", None),
            ("name=two words", None),
            ("name=1\nseed=2", None),
            ("name", None),
            ("train..steps=1", None),
            ("[0].a=1", None),
            ("train.steps[0]=1", None),
            ("name=" + "[" * 20, None),
            ("a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q=1", None),
            ("extends=base.toml", None),
        ],
    )
    def test_a_value_is_toml_and_a_bare_word_is_text(self, override, expected):
        if expected is None:
            assert problem(self.overridden, "", override).startswith(f"--set {override}: ")
        else:
            assert self.overridden("", override).table == expected

    def test_items_of_lists_are_reached_by_index(self):
        text = '[[model.block]]\nuse = "a"\n[[model.block]]\nuse = "b"\nfilters = ["snr"]'
        source = self.overridden(text, "model.block[1].heads=4", "model.block[1].filters[0].threshold=2")
        assert source.table["model"]["block"][1] == {
            "use": "b", "heads": 4, "filters": [{"use": "snr", "threshold": 2}]}
        assert source.locate(("model", "block", 1, "heads")) == "--set model.block[1].heads=4"
        assert problem(self.overridden, text, "model.block[2].heads=4") == (
            "--set model.block[2].heads=4: model.block[2] does not exist: the list has 2 items, numbered from 0")

    def test_a_replaced_value_forgets_its_place(self):
        source = self.overridden("[train]\nsteps = 3", "train={}")
        assert source.locate(("train", "steps")) == "--set train={}"

    @pytest.mark.parametrize(
        "override, expected",
        [
            ("train={steps=3}", {"steps": 3, "warmup_steps": 5, "optimizer": {"use": "muon", "momentum": 0.9}}),
            ("train={optimizer={momentum=0.8}}",
             {"steps": 9, "warmup_steps": 5, "optimizer": {"use": "muon", "momentum": 0.8}}),
            ("train.optimizer={use='muon', nesterov=false}",
             {"steps": 9, "warmup_steps": 5, "optimizer": {"use": "muon", "nesterov": False}}),
            ("train={}", {}),
        ],
    )
    def test_a_table_changes_its_keys_and_one_with_use_takes_the_place(self, override, expected):
        """``muse_core.train(recipe, {"train": {"steps": 3}})`` lost all else that the recipe says of training."""
        text = "[train]\nsteps = 9\nwarmup_steps = 5\noptimizer = { use = 'muon', momentum = 0.9 }\n"
        source = self.overridden(text, override)
        assert source.table == {"train": expected}
        if "steps=3" in override:
            assert source.place(("train", "steps"))[0] == f"--set {override}"
            assert source.place(("train", "warmup_steps"))[1] == 3

    def test_a_table_goes_into_a_bare_name_and_into_an_item_of_a_list(self):
        text = "[model]\nblock = ['attention', { use = 'feed-forward', hidden = 3 }]\n"
        source = self.overridden(text, "model.block[0]={heads=2}", "model.block[1]={bias=true}")
        assert source.table["model"]["block"] == [
            {"use": "attention", "heads": 2}, {"use": "feed-forward", "hidden": 3, "bias": True}]

    def test_all_wrong_overrides_are_said(self):
        with pytest.raises(RecipeError) as caught:
            self.overridden("", "a", "b")
        assert len(caught.value.problems) == 2
