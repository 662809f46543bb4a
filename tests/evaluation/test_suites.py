"""The suites: what they measure on a small run, and on models whose answers are known."""

from __future__ import annotations

import json
import math
import re
import weakref
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import muse_core
from muse_core.cli import muse
from muse_core.contracts import Batch, KernelRequest, ModelOutput, Tokens
from muse_core.evaluation.needles import FORMS, by_chance, filler, make_row, marked
from muse_core.evaluation.scoring import Reader
from muse_core.evaluation.suites import SUITES, evaluate, importance
from muse_core.evaluation.suites.losses import seen_before
from muse_core.evaluation.suites.subject import Subject, split_of
from muse_core.model.dispatch import DispatchedKernel

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def subject(finished_run: Path) -> Subject:
    return Subject(setup=muse_core.load(finished_run).setup, tokens=2048, samples=1)


def rows_of(subject: Subject, name: str) -> list[dict[str, Any]]:
    return evaluate(subject, [name])[name]


def with_model(subject: Subject, model: nn.Module, **changes: Any) -> Subject:
    return attrs.evolve(subject, setup=attrs.evolve(subject.setup, model=model), **changes)


class Reads(nn.Module):
    """Says with certainty what ``following(ids)`` answers to all that it has read: after every token, or where
    ``last`` after the last one only."""

    def __init__(self, *, last: bool):
        super().__init__()
        self.last = last

    def following(self, ids: list[int]) -> int:
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor, state: Any = None, tokens: Any = None) -> ModelOutput:
        before = state["ids"] if state else inputs[:, :0]
        whole = torch.cat((before, inputs), 1)
        hidden = torch.zeros(*inputs.shape, 257)
        length = inputs.shape[1]
        for row, ids in enumerate(whole.tolist()):
            for place in range(length - 1 if self.last else 0, length):
                hidden[row, place, self.following(ids[: before.shape[1] + place + 1])] = 20.0
        return ModelOutput(hidden, {"ids": whole}, {}, {})

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class Solver(Reads):
    """Answers the questions of the family. ``ignores``: not of the key that is asked for but of the one that stands
    first in the text. ``sees``: the share of the text's end that it remembers."""

    def __init__(self, *, ignores: bool = False, sees: float = 1.0):
        super().__init__(last=True)
        self.ignores, self.sees = ignores, sees

    def following(self, ids: list[int]) -> int:
        text = bytes(one for one in ids if one < 256).decode(errors="replace")
        place = max(text.rfind("\nWhat is the special"), text.rfind("\nWhat are all"), text.rfind("\nQuestion: Find"))
        if place < 0:
            return 0
        context, question = text[:place], text[place:]
        context = context[int((1 - self.sees) * len(context)) :]
        if "VAR" in text:
            wanted, said = re.search(r"the value (\d+) in", question)[1], question.split("they are: ")[1]
            answer = self._chain(context, wanted)
        else:
            names = re.search(r"numbers? for (.+?) mentioned", question)[1].replace(" and ", ", ").split(", ")
            said = re.split(r"mentioned in the provided text (?:is|are)", question)[1]
            answer = self._numbers(context, names)
        full = (" " + ", ".join(answer) + ".").encode()
        return full[min(len(said.encode()), len(full) - 1)]

    def _numbers(self, context: str, names: list[str]) -> list[str]:
        pairs = re.findall(r"numbers for ([a-z]+) is: (\d+)\.", context)
        if self.ignores:
            names = list(dict.fromkeys(name for name, _ in pairs))[: len(names)]
        return [value for name in names for key, value in pairs if key == name]

    def _chain(self, context: str, wanted: str) -> list[str]:
        steps = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)\.", context)
        found: list[str] = []
        if self.ignores:
            wanted = next((value for _, value in steps if value.isdigit()), wanted)
        for name, value in steps:
            if value == wanted or value in found:
                found.append(name)
        return found


@pytest.fixture(scope="module")
def solved(subject: Subject) -> Any:
    def ask(samples: int = 4, **options: Any) -> dict[str, dict[str, Any]]:
        asked = with_model(subject, Solver(**options), samples=samples, lengths=(16,))
        return {row["form"]: row for row in rows_of(asked, "needles")}

    return ask


def test_a_model_that_reads_the_question_passes_every_form_at_every_depth(solved: Any) -> None:
    for name, row in solved().items():
        assert row["recall"] == row["exact"] == 1.0 and row["by_depth"] == [1.0] * 5, (name, row)
        assert row["uses_key"] is (None if name == "single" else True) and row["length"] == 1024


def test_a_model_that_ignores_the_key_fails_every_form_that_has_several(solved: Any) -> None:
    found = solved(ignores=True)
    assert found.pop("single")["recall"] == 1.0, "a single needle does not ask for its key, and no verdict is given"
    assert len(found) == 4
    for name, row in found.items():
        assert row["uses_key"] is False and row["exact"] < 0.85, (name, row)


def test_the_map_shows_where_a_model_forgets(solved: Any) -> None:
    row = solved(sees=0.5)["single"]
    assert row["by_depth"][0] == row["by_depth"][1] == 0.0 and row["by_depth"][3] == row["by_depth"][4] == 1.0


def test_no_key_stands_out_by_where_its_needle_lies(subject: Subject) -> None:
    """Over all depths the needle that is asked for is the first of its row as often as any other; those of other keys
    lie anywhere at each depth."""
    text = filler(np.asarray(subject.split.tokens), subject.tokenizer.separator)
    for name, form in FORMS.items():
        random, first, rows, late = np.random.default_rng(3), 0, 200, 0
        for number in range(rows):
            depths = ((number % 5) / 5, (number % 5 + 1) / 5)
            row = make_row(form, subject.tokenizer, text, 1024, depths, random)
            said = subject.tokenizer.decode(row.ids)
            heads = [min(said.index(needle) for needle in of_key) for of_key in row.puzzle.needles]
            first += heads[0] == min(heads)
            late += number % 5 == 0 and max(heads[1:], default=0) > len(said) / 2
            assert len(row.ids) == 1024 and all(needle in said for of_key in row.puzzle.needles for needle in of_key)
        assert abs(first / rows - 1 / form.keys) < 0.12, name
        assert form.keys == 1 or late > rows / 5 / 4, "of the rows that ask for a needle in the first fifth"


def test_only_as_many_answers_are_read_as_were_asked_for() -> None:
    puzzle = FORMS["multi-value"].make(np.random.default_rng(0))
    assert marked(puzzle, " 1, 2, " + ", ".join(puzzle.answers)) == (0.0, False)
    assert marked(puzzle, f" {puzzle.answers[1]} and {puzzle.answers[0]}.") == (1.0, True)
    ordered = FORMS["multi-query"].make(np.random.default_rng(0))
    assert marked(ordered, " " + ", ".join(reversed(ordered.answers))) == (0.0, False)
    assert by_chance(0, 20, 0.25) == 1.0 and by_chance(9, 20, 0.25) == pytest.approx(0.0409, abs=1e-4)


def test_an_untrained_model_recalls_nothing_and_needles_that_do_not_fit_are_asked_at_greater_length(
    subject: Subject,
) -> None:
    rows = rows_of(subject, "needles")
    assert [row["form"] for row in rows] == list(FORMS)
    assert all(row["length"] in (512, 1024) and row["recall"] < 0.5 for row in rows), rows


def test_bigrams_that_stood_before_in_the_same_document_are_told_from_new_ones() -> None:
    ids = torch.tensor([[1, 2, 1, 2, 1, 2, 3]])
    resets = torch.tensor([[True, False, False, False, True, False]])
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(1, 6, dtype=torch.bool), Tokens(torch.zeros(1, 6)))
    assert seen_before(batch).tolist() == [[False, False, True, True, True, False]]
    batch = batch._replace(tokens=Tokens(torch.zeros(1, 6), resets=resets))
    assert seen_before(batch).tolist() == [[False, False, True, True, False, False]]


def test_the_two_parts_of_the_loss_make_the_whole(subject: Subject) -> None:
    whole = {row["length"]: row["nats_per_token"] for row in rows_of(subject, "length")}
    assert list(whole) == [64, 128, 256, 512]
    rows = rows_of(subject, "recall")
    for length in (64, 512):
        parts = [row for row in rows if row["length"] == length]
        assert [row["bigram"] for row in parts] == ["seen before", "new"]
        total = sum(row["share"] * row["nats_per_token"] for row in parts)
        assert total == pytest.approx(whole[length], rel=1e-6)
        assert all(row["low"] <= row["nats_per_token"] <= row["high"] for row in parts)
    assert len(rows_of(attrs.evolve(subject, lengths=(1,)), "recall")) == 2, "one length is measured once"


def test_a_part_of_the_loss_is_of_counted_labels_alone_and_of_one_document_has_no_interval(subject: Subject) -> None:
    own = attrs.evolve(subject, own=split_of(["again and again " * 20], subject.tokenizer), lengths=(1,))
    (whole,), parts = rows_of(own, "held-out"), rows_of(own, "recall")
    assert whole["tokens"] % subject.length and sum(row["tokens"] for row in parts) == whole["tokens"]
    nats = [row["tokens"] * row["nats_per_token"] for row in (*parts, whole)]
    assert sum(nats[:2]) == pytest.approx(nats[2]) and all(row["low"] is row["high"] is None for row in parts)


def test_ratios_over_length_are_to_the_training_length(subject: Subject) -> None:
    first, *rest = rows_of(subject, "length")
    assert "ratio" not in first and len(rest) == 3
    for row in rest:
        assert row["ratio"] == pytest.approx(row["bits_per_byte"] / first["bits_per_byte"], rel=1e-9)
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


class Copies(Reads):
    """After a token that it has read before, what followed it first."""

    def following(self, ids: list[int]) -> int:
        place = ids.index(ids[-1])
        return ids[place + 1] if place < len(ids) - 1 else 0


def test_pairs_are_recalled_by_a_model_that_looks_them_up(subject: Subject) -> None:
    rows = rows_of(with_model(subject, Copies(last=False)), "mqar")
    assert [row["pairs"] for row in rows] == [4, 8, 16, 32, 64]
    assert all(row["accuracy"] == 1.0 and row["questions"] == 8 * row["pairs"] for row in rows if "accuracy" in row)
    assert sum("accuracy" in row and row["chance"] == 1 / row["pairs"] for row in rows) >= 4
    assert all(row["accuracy"] < 0.5 for row in rows_of(subject, "mqar") if "accuracy" in row)


def test_the_share_filtered_and_the_ratio_are_those_of_the_filter(subject: Subject) -> None:
    """The text is one period of the memory, and the filter changes nothing."""
    recipe = subject.setup.recipe
    one_period = attrs.evolve(recipe, train=attrs.evolve(recipe.train, sequence_length=32))
    (row,) = rows_of(attrs.evolve(subject, setup=attrs.evolve(subject.setup, recipe=one_period)), "importance")
    assert row["layer"] == "blocks.0.fast-weights" and row["threshold"] == 2.0 and row["energy"] > 0
    assert row["share_below"] == pytest.approx(row["filter/snr/share_filtered"], abs=1e-6)
    assert row["snr"] == pytest.approx(row["filter/snr/signal_to_noise"], rel=1e-4)
    assert 0.0 < row["recency"] < 1.0


def test_words_are_counted_in_the_text_whatever_its_windows_and_tokens(subject: Subject) -> None:
    """Windows end within words; the perplexity of a word is e to the nats of the whole text over their number."""
    texts = [f"Word{number} follows  other words\nover{number} lines" for number in range(120)]  # several spans
    (row,) = rows_of(attrs.evolve(subject, own=split_of(texts, subject.tokenizer), tokens=1 << 20), "held-out")
    assert row["words"] == 120 * (6 + 1) and row["tokens"] == row["bytes"] + len(texts)
    due = math.exp(row["nats_per_token"] * row["tokens"] / row["words"])
    assert row["word_perplexity"] == pytest.approx(due, rel=1e-6)


def test_the_recent_share_of_equal_writes_is_that_of_their_decay() -> None:
    """σ² adds up squares, so that a write t tokens ago counts e^{2 g t}: of n equal ones the last m are
    (1 − e^{2 g m}) / (1 − e^{2 g n})."""
    layer: Any = nn.Identity()
    request = KernelRequest("fast_weights", "cpu", "float32")
    layer.kernel = DispatchedKernel(request, lambda *writes: (writes[2], torch.zeros(1, 1, 2, 3)), None)
    g, older, recent = -0.1, 6, 4

    def write(tokens: int) -> None:
        key, value = torch.ones(1, tokens, 1, 2), torch.ones(1, tokens, 1, 3)
        layer.kernel(key, key, value, torch.full((1, tokens, 1), g), torch.ones(1, tokens, 1))

    with importance.watched(nn.ModuleDict({"layer": layer})) as found:
        write(older)
        found["layer"].earlier = found["layer"].sums["write_scale"]
        write(recent)
    due = (1 - math.exp(2 * g * recent)) / (1 - math.exp(2 * g * (older + recent)))
    assert importance._numbers(found["layer"], 2.0)["recency"] == pytest.approx(due, rel=1e-5)


def test_what_a_token_costs_is_measured_by_length(subject: Subject) -> None:
    rows = rows_of(subject, "cost")
    assert [row["length"] for row in rows] == [64, 128, 256, 512]
    assert all(row["seconds_per_token_read"] > 0 and row["seconds_per_token_drawn"] > 0 for row in rows)
    assert all(row["state_bytes"] == row["state_bytes_per_token"] * row["length"] for row in rows)


class Remembers(nn.Module):
    """A model that knows which of its states are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def forward(self, inputs: torch.Tensor, state: Any = None, tokens: Any = None) -> ModelOutput:
        self.most = max(self.most, sum(one() is not None for one in self.held))
        made = torch.full((1,), float(inputs[0, -1]))
        self.held.append(weakref.ref(made))
        return ModelOutput(inputs[..., None].float(), {"x": made}, {}, {})


def test_states_of_a_long_text_are_let_go_as_it_is_read(subject: Subject) -> None:
    model = Remembers()
    hidden, state = Reader(with_model(subject, model).setup, segment=4).after(torch.arange(40)[None])
    assert len(model.held) == 10 and model.most <= 2
    assert hidden.tolist() == [[[39.0]]] and state["x"].item() == 39.0


def test_lengths_are_paired_where_documents_are_shorter_than_windows(subject: Subject) -> None:
    texts = [f"Paragraph {i} is short, and its number is {i * i}." for i in range(200)]
    own = split_of(texts, subject.tokenizer)
    first, *rest = rows_of(attrs.evolve(subject, own=own), "length")
    assert len({row["documents"] for row in (first, *rest)}) == 1 and first["documents"] > 2
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in rest)


def test_lengths_that_are_asked_for_are_read_beside_the_training_length(finished_run: Path) -> None:
    lengths = ("--length", 256, "--length", 1024, "--tokens", 2048)
    asked = command(finished_run, "--suite", "length,cost", *lengths, "--json")
    assert asked.exit_code == 0, asked.output
    rows = json.loads(asked.stdout)
    assert [row["length"] for row in rows] == [64, 256, 1024] * 2
    assert len({row["tokens"] for row in rows if row["suite"] == "length"}) == 1
    assert all(row["peak_bytes"] is None for row in rows if row["suite"] == "cost")


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(muse, ["eval", *map(str, arguments)])


def test_the_command_prints_rows_of_every_run_and_reads_other_text(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    file.write_text("\n\n".join(f"Paragraph {i} speaks of something else, in words of its own." for i in range(30)))
    suites = ("--suite", "held-out,recall", "--text", file, "--documents", "paragraph")
    asked = command(finished_run, finished_run, *suites, "--json")
    assert asked.exit_code == 0, asked.output
    rows = json.loads(asked.stdout)
    assert [row["suite"] for row in rows] == (["held-out"] + 4 * ["recall"]) * 2
    assert rows[0]["text"] == "text" and rows[0]["bytes"] == len(file.read_text()) - 2 * 29
    assert rows[0]["low"] < rows[0]["bits_per_byte"] < rows[0]["high"] and rows[0]["interval_by"] == "documents"
    shown = command(finished_run, *suites)
    assert shown.exit_code == 0 and "bits per byte" in shown.output and "seen before" in shown.output
    alone = json.loads(command(finished_run, "--suite", "held-out", "--text", file, "--json").stdout)
    assert alone[0]["interval_by"] == "windows" and alone[0]["documents"] == 1


def test_every_suite_is_in_the_help() -> None:
    said = command("--help").output
    assert all(f"\n  {name} " in said for name in SUITES)


@pytest.fixture(scope="module")
def task_run(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "run"
    table = small_recipe | {"data": {"use": "mqar", "vocabulary": 64, "pairs": 4}}
    muse_core.train(table, {"train.steps": 2}, run_dir=folder, quiet=True)
    return folder


def test_a_task_is_measured_on_its_own_examples_and_has_no_text(task_run: Path, tmp_path: Path) -> None:
    rows = json.loads(command(task_run, "--json", "--tokens", 1024).stdout)
    skipped = {row["suite"] for row in rows if "skipped" in row}
    assert skipped == {"length", "recall", "needles", "importance"}
    found = [row for row in rows if row["suite"] == "mqar"]
    assert [row["length"] for row in found] == [64, 128, 256, 512]
    assert all(row["low"] <= row["accuracy"] <= row["high"] and row["accuracy"] < 0.5 for row in found)
    asked = command(task_run, "--suite", "needles")
    assert asked.exit_code == 3 and "task stand for none" in asked.stderr
    (tmp_path / "other.txt").write_text("text")
    asked = command(task_run, "--suite", "held-out", "--text", tmp_path / "other.txt")
    assert asked.exit_code == 3 and "leave --text out" in asked.stderr


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--suite", "needels"], 2, "'needels' is no suite - did you mean 'needles'?"),
        (["--suite", ","], 2, "no suite is named"),
        (["--text", "EMPTY"], 3, "holds no text"),
        (["--text", "LATIN"], 3, "is not UTF-8"),
        (["--text", "MISSING"], 3, "cannot be read"),
        (["--step", "7"], 3, "has no checkpoint of step 7"),
        (["--length", "96"], 2, "--length 96: is no multiple of the training length, 64 tokens"),
        (["--length", "192", "--length", "512"], 2, "--length 192: does not divide the longest, 512"),
    ],
)
def test_wrong_input_gets_one_sentence(
    finished_run: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "EMPTY").write_text(" \n")
    (tmp_path / "LATIN").write_bytes("schön".encode("latin-1"))
    given = [str(tmp_path / one) if one.isupper() else one for one in arguments]
    asked = command(finished_run, *given)
    assert asked.exit_code == code and words in asked.stderr and asked.stderr.count("\n") == 1, asked.output
    assert not asked.stdout


def test_a_directory_that_holds_no_run_is_told(tmp_path: Path) -> None:
    asked = command(tmp_path)
    assert asked.exit_code == 3 and "holds no run" in asked.stderr


def test_a_stage_keeps_what_its_suites_measure(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    stages = [{"use": "train"}, {"use": "evaluate", "suites": ["recall"], "tokens": 640}]
    done = muse_core.train(small_recipe | {"stages": stages}, {"train.steps": 2}, run_dir=tmp_path / "run", quiet=True)
    kept = json.loads((tmp_path / "run" / "evaluation-1.json").read_text())
    again = done.evaluate("recall", tokens=640)
    assert [row["nats_per_token"] for row in kept["recall"]] == pytest.approx([r["nats_per_token"] for r in again])
    stages[1]["suites"] = ["recal"]
    with pytest.raises(muse_core.errors.RecipeError, match=r"stages\[1\]\.suites: 'recal' is no suite - did you mean"):
        muse_core.build(small_recipe | {"stages": stages})
