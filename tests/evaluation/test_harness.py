"""The model ``muse`` of lm-evaluation-harness: its answers are those of ``muse_core.load``, and local tasks run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import muse_core
from muse_core.errors import MuseError

pytest.importorskip("lm_eval", reason="lm-eval is an optional extra")
pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["The state of the union is strong — as ever.", "Fellow citizens, the budget of this year is balanced."]
TASKS = {
    "muse_rolling": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{ metric: bits_per_byte }]
""",
    "muse_choice": """\
output_type: multiple_choice
doc_to_text: "{{text}} Is it so? "
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{ metric: acc }]
""",
    "muse_until": """\
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: { until: ["\\n\\n"], max_gen_toks: 4, do_sample: false }
metric_list: [{ metric: exact_match }]
""",
}


@pytest.fixture(scope="module")
def model(finished_run: Path) -> Any:
    from muse_core.evaluation.harness import MuseLM

    given = {"device": "cuda:0", "batch_size": 1, "max_batch_size": None}  # the harness's own where nobody asked
    return MuseLM.create_from_arg_string(f"run={finished_run}", given)


@pytest.fixture(scope="module")
def opened(finished_run: Path) -> Any:
    return muse_core.load(finished_run)


def asked(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=arguments)]


def test_other_models_stay_registered(model: Any) -> None:
    from lm_eval.api.registry import get_model, model_registry

    assert get_model("muse") is type(model)
    assert {"hf", "dummy", "vllm"} <= set(model_registry)


def test_rolling_likelihood_is_the_score(model: Any, opened: Any) -> None:
    for text in TEXTS:
        (found,) = model.loglikelihood_rolling(asked(text))
        assert found == pytest.approx(-opened.score(text)["nats"], rel=1e-6)
    assert model.loglikelihood_rolling(asked("")) == [0.0]


def test_windows_change_nothing_where_the_text_fits_and_cost_context_where_not(finished_run: Path, opened: Any) -> None:
    from muse_core.evaluation.harness import MuseLM

    wide, narrow = (MuseLM(run=str(finished_run), max_length=length) for length in ("100", "8"))
    (whole,), (cut,) = (one.loglikelihood_rolling(asked(TEXTS[0])) for one in (wide, narrow))
    assert whole == pytest.approx(-opened.score(TEXTS[0])["nats"], rel=1e-6)
    first = opened.score(TEXTS[0][:8])["nats"]
    assert cut != pytest.approx(whole, rel=1e-4) and -cut > first


def test_a_continuation_is_the_rest_of_the_score(model: Any, opened: Any) -> None:
    context, continuation = "The state of the", " union is strong"
    (found, greedy), = model.loglikelihood(asked(context, continuation))
    rest = opened.score(context + continuation)["nats"] - opened.score(context)["nats"]
    assert found == pytest.approx(-rest, rel=1e-5) and greedy is False
    (empty, _), = model.loglikelihood(asked("", context))
    assert empty == pytest.approx(-opened.score(context)["nats"], rel=1e-6)


def test_what_is_generated_is_greedy_and_ends_at_a_stop_string(model: Any, opened: Any) -> None:
    settings = {"until": [], "max_gen_toks": 12}
    (said,) = model.generate_until(asked(TEXTS[0], settings))
    ids = [opened.tokenizer.separator, *opened.tokenizer.encode(TEXTS[0])]
    expected = []
    for _ in range(12):
        expected.append(int(opened.logits([*ids, *expected])[-1].argmax()))
        if expected[-1] == opened.tokenizer.separator:
            break
    assert said == opened.tokenizer.decode(one for one in expected if one != opened.tokenizer.separator)
    (found, greedy), = model.loglikelihood(asked(TEXTS[0], said))
    assert greedy is True and found < 0
    stop = said[3:5]
    (stopped,) = model.generate_until(asked(TEXTS[0], settings | {"until": [stop]}))
    assert stop and stopped == said[: said.index(stop)]


@pytest.mark.parametrize(
    "arguments, words", [("", "needs run=DIR"), ("run=/nowhere", "holds no run"), ("run=RUN,depth=3", "has no depth")]
)
def test_wrong_arguments_get_one_sentence(finished_run: Path, arguments: str, words: str) -> None:
    from muse_core.evaluation.harness import MuseLM

    with pytest.raises(MuseError, match=words):
        MuseLM.create_from_arg_string(arguments.replace("RUN", str(finished_run)))


@pytest.mark.slow
def test_local_tasks_run_without_a_network(finished_run: Path, opened: Any, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name, task in TASKS.items():
        files = f"dataset_kwargs: {{ data_files: {{ test: {data} }} }}"
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\n{files}\ntest_split: test\n{task}")
    command = [
        sys.executable, "-m", "muse_core", "lm-eval", "--model", "muse", "--model_args", f"run={finished_run}",
        "--tasks", ",".join(TASKS), "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | offline)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    scores = [opened.score(text) for text in TEXTS]
    bits = sum(one["bits_per_byte"] * one["bytes"] for one in scores) / sum(one["bytes"] for one in scores)
    assert results["muse_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
    assert 0.0 <= results["muse_choice"]["acc,none"] <= 1.0
    assert results["muse_until"]["exact_match,none"] == 0.0
