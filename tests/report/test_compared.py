"""``muse compare`` on finished runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import muse_core
from muse_core.cli import muse
from muse_core.data.tokenizers import ByteTokenizer, Numbers
from muse_core.errors import RecipeError, StorageError
from muse_core.metrics.jsonl import Records
from muse_core.report.charts import all_charts
from muse_core.report.compared import compare_runs
from muse_core.report.reading import read_runs
from muse_core.report.tables import key_numbers, runs_table
from muse_core.report.writing import write_report

WORSE = (1.21, 1.20, 1.19, 1.20)
MIXED = (1.3, 0.7, 1.2, 0.8)


def test_ratio_interval_and_verdict(made_run):
    report = compare_runs(read_runs([made_run("worse", factors=WORSE), made_run("base")]))
    one = report["against_baseline"][0]
    assert one["value"] == pytest.approx((1.21 * 400 + 1.2 * 300 + 1.19 * 500 + 1.2 * 200) / 1400)
    assert one["low"] < one["value"] < one["high"] and one["verdict"] == "worse"
    assert any("unreliable" in remark for remark in one["remarks"])
    assert any("no spread of training" in remark for remark in one["remarks"])


def test_text_of_several_sources_is_compared_by_source_too(made_run):
    sources = ("code", "prose", "code", "prose")
    runs = [made_run("one", factors=(0.8, 1.0, 0.8, 1.0), sources=sources), made_run("base", sources=sources)]
    one = compare_runs(read_runs(runs))["against_baseline"][0]
    assert {name: of["value"] for name, of in one["by_source"].items()} == pytest.approx({"code": 0.8, "prose": 1.0})
    assert any(remark.startswith("code: 0.8000, ") for remark in one["remarks"])


def test_rows_of_an_earlier_version_tell_nothing_of_sources_and_are_compared_with_their_like(made_run):
    """There a row of several documents counts for the first, whatever the source of the others."""
    sources = ("code", "prose", "code", "prose")
    runs = [made_run(name, factors=of, sources=sources) for name, of in (("old", WORSE), ("older", (1.0,) * 4))]
    new = made_run("new", sources=sources)
    for run in runs:
        table = json.loads((run / "held_out.json").read_text())
        del table["by_document"]
        (run / "held_out.json").write_text(json.dumps(table))
    one = compare_runs(read_runs(runs))["against_baseline"][0]
    assert one["by_source"] == {} and one["verdict"] == "worse"
    with pytest.raises(RecipeError, match="one of them by an earlier version"):
        compare_runs(read_runs([runs[0], new]))


@pytest.mark.parametrize("factors, base, verdict", [
    ((1.0,) * 4, WORSE, "better"), (MIXED, (1.0,) * 4, "no difference shown"),
])
def test_other_verdicts(made_run, factors, base, verdict):
    report = compare_runs(read_runs([made_run("one", factors=factors), made_run("two", factors=base)]))
    assert report["against_baseline"][0]["verdict"] == verdict
    assert report["baseline"] == "two" and "leaves out 1" in report["test"]


def test_a_run_that_learned_next_to_nothing_is_named_beside_the_verdict(made_run):
    one, base = made_run("one", factors=WORSE), made_run("base")
    summary = json.loads((one / "summary.json").read_text())
    (one / "summary.json").write_text(json.dumps(summary | {"not_better_than": ["unigram", "bigram"]}))
    remarks = compare_runs(read_runs([one, base]))["against_baseline"][0]["remarks"]
    assert [remark for remark in remarks if "not better" in remark] == [
        "one is not better than counts of single training tokens"
    ]


def test_a_run_whose_loss_is_no_number_is_not_called_equal(made_run):
    one = made_run("one", factors=(1.0, float("nan"), 1.0, 1.0))
    found = compare_runs(read_runs([one, made_run("two")]))["against_baseline"][0]
    assert found["verdict"] == "no verdict" and any("no finite number" in remark for remark in found["remarks"])


@pytest.mark.parametrize("changed, said", [
    ({"data": "other"}, "their text differs"),
    ({"split": "test"}, "evaluate.split is test and validation"),
    ({"length": 64}, "length of the evaluated rows is 64 and 32"),
    ({"sizes": [400.0, 300.0, 500.0, 100.0]}, "stretches of text .* - give both one evaluate.final_tokens$"),
    ({"tokenizer": "other", "data": "other", "sizes": [1.0, 2.0, 3.0, 4.0]}, "stretches of text .* one tokenizer$"),
])
def test_what_is_not_comparable_is_refused_in_one_sentence(made_run, changed, said):
    with pytest.raises(RecipeError, match=said) as refused:
        compare_runs(read_runs([made_run("one", **changed), made_run("two")]))
    assert "\n" not in str(refused.value)


def test_other_tokenizers_are_compared_in_bits_per_byte_of_the_same_bytes(made_run):
    report = compare_runs(read_runs([made_run("one", tokenizer="other", data="other"), made_run("two")]))
    assert report["against_baseline"][0]["value"] == 1
    assert "the tokenizers differ" in report["against_baseline"][0]["remarks"][0]


OF_A_TASK = {"references": {"chance": {"loss": 3.5, "bits_per_byte": 5.0}}}


def of_task(run: Path) -> Path:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | OF_A_TASK))
    return run


@pytest.mark.parametrize("tokenizer", ["same", "other"])
def test_runs_on_unlike_tasks_are_refused(made_run, tokenizer):
    """A task of more pairs, or of more numbers: as many labels count in both, and none stands for bytes."""
    runs = [of_task(made_run("one", data="other", tokenizer=tokenizer)), of_task(made_run("two", tokenizer="same"))]
    with pytest.raises(RecipeError, match="their task differs .digests.data of the locks. - train both on one task"):
        compare_runs(read_runs(runs))


def test_a_run_on_a_task_and_one_on_text_are_refused_as_such(made_run):
    runs = [of_task(made_run("one", data="other", tokenizer="numbers")), made_run("two")]
    for pair in (runs, runs[::-1]):
        with pytest.raises(RecipeError, match="one is of a task and the other of text"):
            compare_runs(read_runs(pair))


def test_runs_on_one_task_are_compared_in_bits_per_token(made_run, tmp_path):
    runs = [of_task(made_run("one", factors=WORSE)), of_task(made_run("two"))]
    done = CliRunner().invoke(muse, ["compare", *map(str, runs), "-o", str(tmp_path / "out")])
    assert "× the bits per token of two" in done.output and "per byte" not in done.output
    assert "| bits per token |" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["unit"] == "bits per token"


def test_a_list_of_runs_says_what_is_of_counted_tokens(made_run):
    shown = runs_table(read_runs([of_task(made_run("task")), made_run("text")])).rows
    assert [row[2].endswith(" per token") for row in shown] == [row[6].endswith(" counted") for row in shown]
    assert [row[2].endswith(" per token") for row in shown] == [True, False]


def test_curves_of_tasks_are_titled_per_token(made_run):
    task, text = of_task(made_run("task")), made_run("text")
    mixed = "Bits per byte, of a task per token"
    for runs, title in (([task], "Bits per token"), ([text], "Bits per byte"), ([task, text], mixed)):
        assert all_charts(read_runs(runs))["curves"][0].title == title


def test_a_run_on_a_task_that_goes_on_is_told_per_counted_token(made_run):
    """It has no summary yet; the tokenizer that it keeps is that of numbers."""
    text, task = made_run("text", finished=False), made_run("task", finished=False)
    (text / "tokenizer.json").write_text(ByteTokenizer().to_json())
    (task / "tokenizer.json").write_text(Numbers(64).to_json())
    for run, unit, tokens in ((text, "bits per byte", "tokens per second"), (task, "bits per token", "counted tokens")):
        records = Records(run)
        row = {"event": "train", "stage": 0, "step": 41, "loss": 1.0, "perplexity": 2.0}
        records.metrics(row | {"bits_per_byte": 1.4, "tokens_per_second": 9.0})
        records.close()
        (read,) = read_runs([run])
        charts = all_charts([read])
        assert charts["curves"][0].title.lower() == unit
        axes = json.dumps([chart.spec for chart in charts["throughput"]])
        assert axes.count("counted tokens per second") == 2 * (run == task)
        told = dict(key_numbers(read))
        assert f"{unit} of training" in told and any(name.startswith(tokens) for name in told), told


def test_an_unfinished_run_is_refused(made_run):
    with pytest.raises(StorageError, match="is not finished .unfinished. - go on with muse-run --resume"):
        compare_runs(read_runs([made_run("one", finished=False), made_run("two")]))


def test_a_run_that_has_gone_on_is_compared_by_its_earlier_end_and_said_to_be(made_run):
    """By ``--extend``: until the new end its summary is that of the old one."""
    one, two = made_run("one"), made_run("two")
    before = compare_runs(read_runs([one, two]))["against_baseline"][0]["remarks"]
    assert not any("gone on" in remark for remark in before)
    Records(two).event({"event": "interrupted", "signal": "SIGTERM", "stage": 0, "step": 60})
    found = compare_runs(read_runs([one, two]))["against_baseline"][0]["remarks"]
    assert "two has gone on since (interrupted): its figures are of its end at step 40" in found


def test_the_command_writes_an_overlay_and_says_what_differs(made_run, tmp_path, monkeypatch):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    monkeypatch.chdir(tmp_path)
    runs = [made_run("one", factors=WORSE, rate=0.02), made_run("two")]
    done = CliRunner().invoke(muse, ["compare", *map(str, runs)])
    assert done.exit_code == 0, done.output
    assert "train.learning_rate: 0.02 | 0.01" in done.output and "worse" in done.output
    folder = Path("comparisons/one-against-two")
    assert "Comparison" in (folder / "report.html").read_text() and (folder / "pictures/bits-per-byte.png").is_file()
    report = json.loads((folder / "report.json").read_text())
    assert report["recipe"] == {"train.learning_rate": ["0.02", "0.01"]}
    one, two = csv.DictReader((folder / "report.csv").read_text().splitlines())
    assert float(one["ratio"]) == report["against_baseline"][0]["value"] and two["ratio"] == ""
    assert f"& {report['against_baseline'][0]['value']:.4f} &" in (folder / "report.tex").read_text()
    assert "| two | 1,000 | 40 | 50 | 1.0000 | 1 |" in (folder / "report.md").read_text()


def test_runs_on_one_document_have_a_ratio_and_nowhere_an_interval(made_run, tmp_path):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    runs = [made_run(name) for name in ("one", "two")]
    for run in runs:
        rows = json.loads((run / "held_out.json").read_text())
        (run / "held_out.json").write_text(json.dumps(rows | {"document": [0] * 4}))
    done = CliRunner().invoke(muse, ["compare", *map(str, runs), "-o", str(tmp_path / "both")])
    assert "one: 1.0000 × the bits per byte of two: no verdict" in done.output and "no interval" in done.output
    written = [(tmp_path / "both" / name).read_text() for name in ("report.md", "report.tex", "report.html")]
    assert all("1.0000 to 1.0000" not in text for text in written)
    one, _ = csv.DictReader((tmp_path / "both" / "report.csv").read_text().splitlines())
    assert (float(one["ratio"]), one["low"], one["high"]) == (1.0, "", "")


def test_a_report_removes_its_own_old_pictures_and_nobody_elses(made_run, tmp_path):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    folder, pictures = tmp_path / "site", tmp_path / "site" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "holiday.png").write_bytes(b"mine")
    both = read_runs([made_run("one"), made_run("two")])
    write_report(both, folder)
    assert (pictures / "needles-2.png").is_file() and (pictures / "loss.png").is_file()
    page = folder / "report.html"
    page.write_text(page.read_text() + '<p id="picture-../../kept">')
    (tmp_path / "kept.png").touch()
    write_report(both[:1], folder)
    assert (tmp_path / "kept.png").is_file()
    assert (pictures / "needles.png").is_file() and not (pictures / "needles-2.png").exists()
    assert (pictures / "holiday.png").read_bytes() == b"mine"


def test_python_is_given_the_rows_of_the_command(made_run):
    one, two = muse_core.compare(made_run("one", factors=WORSE), str(made_run("two")))
    assert (one["verdict"], two["verdict"], two["ratio"]) == ("worse", None, None)
    assert one["low"] < one["ratio"] < one["high"] and one["baseline"] == "two"
    with pytest.raises(RecipeError, match="two or more"):
        muse_core.compare("one")


@pytest.mark.parametrize("arguments, code, said", [
    (["one"], 2, "give two or more run directories"),
    (["one", "two/recipe.toml"], 2, "is a file"),
    (["one", "two", "--slots", "2"], 2, "leave all options but --output out"),
    (["one", "nowhere"], 3, "holds no run"),
])
def test_wrong_arguments(made_run, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        made_run(name)
    done = CliRunner().invoke(muse, ["compare", *arguments])
    assert done.exit_code == code and said in done.output
    assert not Path("comparisons").exists()
