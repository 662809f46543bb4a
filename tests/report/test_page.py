"""The page and its pictures: everything there, nothing from elsewhere, text that is only text."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser

import attrs
import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.errors import RecipeError, StorageError
from muse_core.metrics.jsonl import Records
from muse_core.report import listing
from muse_core.report.charts import BEGINNING, MOST_POINTS, all_charts, thinned
from muse_core.report.page import SECTIONS, _table, page
from muse_core.report.reading import read_run, read_runs
from muse_core.report.tables import Table, events_table, key_numbers, monitors_table, recipe_differences, runs_table
from muse_core.report.writing import write_report

ALWAYS = {*SECTIONS, "sample", "monitors", "events", "recipe", "lock"}


class Read(HTMLParser):
    """Elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text, self.data, self.inside = "", {}, ("", {})
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = (tag, dict(attributes))
        self.elements.append(self.inside)

    def handle_endtag(self, tag):
        self.inside = ("", {})

    def handle_data(self, data):
        if self.inside[0] == "script":
            self.data[self.inside[1].get("id", "")] = data
        elif self.inside[0] != "style":
            self.text += data


def drawn(*paths, live=False):
    runs = read_runs(paths)
    text = page(runs, all_charts(runs), "/* the library */", live=live)
    return text, Read(text)


def test_every_section_is_there_and_every_picture_is_described(made_run):
    _, read = drawn(made_run("one"))
    sections = {attributes["id"] for tag, attributes in read.elements if tag == "section"}
    assert sections == ALWAYS
    pictures = {a["id"]: a for tag, a in read.elements if a.get("class") == "picture"}
    names = {"bits-per-byte", "loss", "gradient-norm", "learning-rate", "decay-fast-weights", "energy-fast-weights",
             "needles", "throughput", "parameters"}
    assert pictures.keys() == {f"picture-{name}" for name in names} == json.loads(read.data["pictures"]).keys()
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in pictures.values())
    assert "1 rollback" in pictures["picture-bits-per-byte"]["aria-label"]
    assert "75.0%" in pictures["picture-parameters"]["aria-label"]
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_descriptions_of_pictures_tell_what_is_drawn_of_every_run(made_run):
    both = read_runs([made_run("one"), made_run("two", factors=(2.0,) * 4)])
    # A run that is shorter than evaluate.every has the held-out point of its end alone.
    for run in both:
        run.evaluations.clear()
    charts = all_charts(both)
    loss = next(chart for chart in charts["curves"] if chart.name == "loss")
    assert loss.alt.count("held out at the end 1.5 at step 40") == 2
    decay = next(chart for chart in charts["layers"] if chart.name == "decay-fast-weights")
    assert all(f"{run}, depth {depth}: 0.0" in decay.alt for run in ("one", "two") for depth in (0, 1))


def test_nothing_comes_from_elsewhere_and_the_browser_is_told_so(made_run):
    _, read = drawn(made_run("one"))
    links = [a.get(key, "") for _, a in read.elements for key in ("src", "href", "action", "data", "poster")]
    assert {link for link in links if link} == {"data:,"}
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy and "connect-src" not in policy
    live = next(a["content"] for _, a in drawn(made_run("two"), live=True)[1].elements
                if a.get("http-equiv") == "Content-Security-Policy")
    assert "connect-src 'self'" in live


def test_hostile_text_of_recipe_sample_and_events_is_text(made_run):
    text, read = drawn(made_run("one"))
    assert not [a for tag, a in read.elements if tag == "img"]
    scripts = [a for tag, a in read.elements if tag == "script"]
    assert len(scripts) == 4, "themes, pictures, the library, and what draws"
    assert "\x00" not in text and read.text.count("<script>alert(1)</script>") >= 3


def test_cells_that_hold_a_sentence_keep_their_width(made_run):
    table = Table(columns=("a", "b"), rows=[("better", "a < sentence " + "of many words " * 5)])
    assert _table(table).count('<td class="sentence">a &lt; sentence') == 1
    assert "<td>better</td>" in _table(table) and "td.sentence { min-width:" in drawn(made_run("one"))[0]


def test_an_unfinished_run_and_a_run_without_steps_are_drawn(made_run, tmp_path):
    _, read = drawn(made_run("one", finished=False))
    assert "unfinished" in read.text and "40 of 40" in read.text
    for name in ("metrics.jsonl", "events.jsonl", "report.json", "muse.lock.toml"):
        (tmp_path / "one" / name).unlink()
    _, read = drawn(tmp_path / "one")
    assert {a["id"] for tag, a in read.elements if tag == "section"} == ALWAYS
    assert all(nothing in read.text for _, nothing in SECTIONS.values())


def test_several_runs_lie_over_each_other(made_run):
    _, read = drawn(made_run("x/one"), made_run("y/one", rate=0.02))
    specs = json.loads(read.data["pictures"])
    assert specs["picture-throughput"]["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["x/one", "y/one"]
    curves = specs["picture-bits-per-byte"]["layer"]
    assert curves[0]["encoding"]["color"]["scale"]["domain"] == ["x/one", "y/one"], "events take no colours of runs"
    (marks,) = [layer for layer in curves if "strokeDash" in layer["mark"]]
    assert {mark["event"] for mark in marks["data"]["values"]} >= {"rollback in x/one", "rollback in y/one"}
    assert {v["run"] for v in specs["picture-decay-fast-weights"]["layer"][0]["data"]["values"]} == {"x/one", "y/one"}
    assert "train.learning_rate" in read.text


def test_of_rows_with_one_step_the_last_counts_and_numbers_that_are_not_finite_are_left_out(made_run):
    run = read_run(made_run("one"))
    curve = all_charts([run])["curves"][0].spec["layer"][0]["data"]["values"]
    assert [point["x"] for point in curve] == list(range(1, 41))
    assert max(point["y"] for point in curve) < 99 and curve[-1]["y"] == 2.0


def test_a_run_shorter_than_its_evaluations_shows_what_it_ended_with(made_run):
    run = read_run(made_run("one"))
    short = attrs.evolve(run, evaluations=[])
    values = [layer["data"]["values"] for layer in all_charts([short])["curves"][0].spec["layer"]]
    found = [point for points in values for point in points if point["series"] == "held out at the end"]
    end = run.summary
    assert {(point["x"], point["y"]) for point in found} == {(40, end["held_out_bits_per_byte"])}
    assert [found[0]["low"], found[0]["high"]] == end["held_out_interval"]
    later = attrs.evolve(short, train=[*run.train, {**run.train[-1], "x": 50}])
    assert "held out at the end" not in {
        point["series"] for layer in all_charts([later])["curves"][0].spec["layer"] for point in layer["data"]["values"]
    }, "the run has gone on since"


def test_no_line_leads_to_the_evaluation_at_the_end(made_run):
    """It reads other text than those in training, so that a line between them would rise or fall by the text."""
    run = read_run(made_run("one"))
    layers = all_charts([run])["curves"][0].spec["layer"]
    drawn = {layer["mark"]["type"]: {p["series"] for p in layer["data"]["values"]} for layer in layers}
    assert drawn["point"] == {"held out at the end"} and "held out at the end" not in drawn["line"]
    (end,) = [p for layer in layers if layer["mark"]["type"] == "point" for p in layer["data"]["values"]]
    assert (end["x"], end["y"]) == (40, run.summary["held_out_bits_per_byte"])


def test_the_axis_of_a_curve_is_that_of_the_values_after_the_beginning(made_run):
    spec = all_charts([read_run(made_run("one"))])["curves"][0].spec
    low, high = spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    values = [p for layer in spec["layer"][:3] for p in layer["data"]["values"] if "y" in p]
    later = [p["y"] for p in values if p["x"] > BEGINNING * 40]
    assert low < min(later) and max(later) < high < max(p["y"] for p in values)


def test_a_run_that_ended_early_is_within_the_axis(made_run):
    """All its steps are of the first twentieth of the longer run."""
    long, short = read_runs([made_run("one"), made_run("two")])
    rows = [{"x": 1, "bits_per_byte": 9.5}, {"x": 2, "bits_per_byte": 9.0}]
    early = attrs.evolve(short, train=rows, evaluations=[], summary={}, events=[])
    low, high = all_charts([long, early])["curves"][0].spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    alone, _ = all_charts([long])["curves"][0].spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert high > 9.5 and abs(low - alone) < 0.5


def test_steps_of_a_later_stage_go_on_from_those_before(tmp_path, made_run):
    path = made_run("one")
    records = Records(path)
    records.metrics({"event": "train", "stage": 1, "step": 5, "loss": 1.0, "perplexity": 2.0, "bits_per_byte": 1.0})
    records.close()
    assert read_run(path).train[-1]["x"] == 45


def test_steps_of_a_run_of_several_stages_are_not_held_against_the_plan_of_one(made_run):
    """One stage has 40 steps, the next 5 of 5; ``train.steps`` is not the plan of both."""
    stages = "stages = [\"pairs\", { use = \"train\" }, \"evaluate\"]\n"
    paths = [made_run("one"), made_run("two", finished=False)]
    for path in paths:
        recipe = path / "recipe.toml"
        recipe.write_text(stages + recipe.read_text().replace("steps = 40", "steps = 5"))
        with contextlib.closing(Records(path)) as records:
            records.metrics({"event": "train", "stage": 1, "step": 5, "loss": 1.0, "perplexity": 2.0})
    file = paths[0] / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": 5, "planned_steps": 5}))
    runs = read_runs(paths)
    assert [(row["steps"], row["planned_steps"]) for row in map(listing.row, runs)] == [(5, 5), (45, None)]
    assert [row[5] for row in runs_table(runs).rows] == ["5", "45"]
    assert dict(key_numbers(runs[1]))["steps"] == "45"
    drawn_points = [
        [point for layer in all_charts([run])["curves"][0].spec["layer"] for point in layer["data"]["values"]]
        for run in runs
    ]
    ends = [max(p["x"] for p in points if p["series"].startswith("held out")) for points in drawn_points]
    assert ends == [45, 40], "what the run ended with stands at its end"
    assert json.loads(CliRunner().invoke(muse, ["show", str(paths[1]), "--json"]).stdout)["planned_steps"] is None
    alone = read_run(made_run("three", finished=False))
    assert alone.progress == (40, 40), "of one stage both are known before its end"


def test_long_curves_are_thinned_and_keep_their_last_point():
    points = [{"x": x} for x in range(10_007)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 1 and kept[0] == points[0] and kept[-1] == points[-1]
    assert thinned([]) == []


def test_what_each_monitor_did(made_run):
    rows = {row[0]: row for row in monitors_table(read_run(made_run("one"))).rows}
    assert rows.keys() == {"finite", "rollback", "niah-probe"}
    assert rows["rollback"][1] == "1 × rollback" and rows["rollback"][2].startswith("step 20: ")
    assert rows["finite"][1] == "no intervention" and rows["niah-probe"][3] == "4"


def test_what_counting_reaches_stands_beside_the_run(made_run):
    path = made_run("one")
    file = path / "summary.json"
    assert "counts reach" not in dict(key_numbers(read_run(path)))
    more = {"references": {name: {"bits_per_byte": bits} for name, bits in (("unigram", 4.5), ("bigram", 3.5))},
            "not_better_than": ["bigram"], "held_out_documents": 1.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    numbers = dict(key_numbers(read_run(path)))
    assert numbers["counts reach"] == "unigram 4.5000, bigram 3.5000" and numbers["not better than"] == "bigram"
    told = numbers["95 % over rows of one document, not seeds"]
    assert told.endswith("too narrow: the text weighs as 1 document of equal size")


def test_differing_keys_of_recipes(made_run):
    runs = read_runs([made_run("one"), made_run("two", rate=0.02)])
    assert recipe_differences(runs).rows == [("train.learning_rate", "0.01", "0.02")]
    assert events_table(runs[0]).rows[-1][2] == "rollback"
    near = read_runs([made_run("three"), made_run("four", rate=0.0100000001)])
    assert recipe_differences(near).rows == [("train.learning_rate", "0.01", "0.0100000001")]


def test_the_state_of_a_run(made_run):
    path = made_run("one")
    assert read_run(path).state == "done"
    for event, state in (("interrupted", "interrupted"), ("resume", "done"), ("halt", "halted")):
        records = Records(path)
        records.event({"event": event, "step": 40})
        records.close()
        assert read_run(path).state == state
    assert read_run(made_run("two", finished=False)).state == "unfinished"


@pytest.mark.parametrize("name, content", [
    ("recipe.toml", "a = ["), ("summary.json", "{"), ("report.json", "[]"), ("report.json", "[" * 100_000),
])
def test_a_damaged_file_is_named(made_run, name, content):
    path = made_run("one")
    (path / name).write_text(content)
    with pytest.raises(StorageError, match=re.escape(f"{path / name}: is ")):
        read_run(path)


def test_a_report_that_cannot_be_written_leaves_no_empty_folders(made_run, tmp_path):
    runs, limits = read_runs([made_run("one")]), resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "out", tmp_path / "mine"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(StorageError, match=r"cannot write the report: File too large - .*\(ulimit -f\)"):
                write_report(runs, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists() and not list((tmp_path / "mine").iterdir())


def test_a_directory_that_is_no_run_and_a_run_named_twice_are_refused(made_run, tmp_path):
    with pytest.raises(StorageError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(RecipeError, match="named twice"):
        read_runs([made_run("one"), tmp_path / "." / "one"])


def test_reports_and_muse_show_import_neither_torch_nor_the_library(made_run):
    code = ("import sys; from muse_core.cli import muse\ntry: muse(['show', sys.argv[1], '--json'])\n"
            "except SystemExit: pass\nimport muse_core.report.writing, muse_core.report.serving\n"
            "print(sorted({'torch', 'vl_convert', 'datasets'} & set(sys.modules)), file=sys.stderr)")
    command = [sys.executable, "-c", code, str(made_run("one"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    table = json.loads(done.stdout)
    assert table["state"] == "done" and table["steps"] == 40 and table["train"]["bits_per_byte"] == 2.0
    assert table["digests"] == {"data": "text", "tokenizer": "bytes"} and table["probe"]["niah-probe/recall"] == 0.8
