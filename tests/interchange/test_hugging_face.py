"""An exported run, opened by transformers as its users do: equal logits, equal tokens drawn, with state or without.

The directory's files are checked without transformers; what opens it needs the package, an extra of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from muse_core.cli import muse
from muse_core.data.tokenizer import Tokenizer
from muse_core.data.tokenizers import ByteTokenizer
from muse_core.errors import RecipeError
from muse_core.interchange.hugging_face import PREFIX, _write_weights, library_tokenizer
from muse_core.training.trained import open_trained

PROMPT = "The state of the ünion is ☃ strong."
MODELS = ["resolvent", "attention", "untied"]


def exported(run: Path, target: Path, *more: str) -> Path:
    done = CliRunner().invoke(muse, ["export", str(run), str(target), *more])
    assert done.exit_code == 0, done.output
    return target


def refused(*arguments: Any) -> str:
    done = CliRunner().invoke(muse, ["export", *map(str, arguments)])
    assert done.exit_code in (2, 3) and isinstance(done.exception, SystemExit), done.output
    return done.output


def opened(folder: Path, **more: Any) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers 5 is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **more)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return model.eval(), tokenizer


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that comes with a directory is copied here."""
    if importlib.util.find_spec("transformers") is not None:
        hub = importlib.import_module("transformers.dynamic_module_utils")
        monkeypatch.setattr(hub, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_equal_the_runs_own(trained: Any, tmp_path: Path, model: str, precision: str) -> None:
    run = trained(model, precision)
    there, tokenizer = opened(exported(run, tmp_path / "hf"))
    setup, _ = open_trained(run)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    assert ids[0].tolist() == setup.corpus.tokenizer.encode(PROMPT).tolist()
    with torch.no_grad(), setup.precision():
        due = setup.model.logits(setup.model(ids).hidden).float()
    with torch.no_grad():
        # Weights that are read where they lie in the file may begin anywhere, which moves the rounding of sums.
        near = 2e-6 if precision == "fp32" else 1e-2
        torch.testing.assert_close(there(ids, use_cache=False).logits, due, rtol=1e-6, atol=near)
        for parameter in there.parameters():
            parameter.data = parameter.data.clone()
        assert torch.equal(there(ids, use_cache=False).logits, due)
    assert {p.dtype for p in there.parameters()} == {torch.float32}


def test_dtype_of_the_reader_wins(trained: Any, tmp_path: Path) -> None:
    folder = exported(trained("resolvent"), tmp_path / "hf", "--dtype", "bf16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    coarse, tokenizer = opened(folder)
    exact, _ = opened(folder, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        assert not torch.equal(coarse(ids).logits, exact(ids).logits)
    setup, _ = open_trained(trained("resolvent"))
    with torch.no_grad():
        assert torch.equal(exact(ids).logits, setup.model.logits(setup.model(ids).hidden))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True}])
def test_what_is_drawn_with_carried_state_is_what_is_drawn_without(
    trained: Any, tmp_path: Path, model: str, how: dict[str, Any]
) -> None:
    there, tokenizer = opened(exported(trained(model), tmp_path / "hf"))
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        drawn.append(there.generate(ids, max_new_tokens=12, use_cache=use_cache, **how))
    assert torch.equal(*drawn)


def test_state_is_carried_and_not_read_again(trained: Any, tmp_path: Path) -> None:
    there, tokenizer = opened(exported(trained("resolvent"), tmp_path / "hf"))
    columns: list[int] = []
    there.model.register_forward_pre_hook(lambda module, arguments: columns.append(arguments[0].shape[1]))
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    there.generate(ids, max_new_tokens=5, do_sample=False)
    assert columns == [ids.shape[1], 1, 1, 1, 1]


@pytest.mark.parametrize("model", MODELS)
def test_padded_rows_give_what_they_give_alone(trained: Any, tmp_path: Path, model: str) -> None:
    there, tokenizer = opened(exported(trained(model), tmp_path / "hf"))
    texts = ["Mr. Speaker", "The state of the union is a longer prompt", "A"]
    how = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = there.generate(**tokenizer(texts, return_tensors="pt", padding=True), **how)
    for row, text in zip(together, texts):
        alone = there.generate(**tokenizer(text, return_tensors="pt"), **how)
        assert row[-8:].tolist() == alone[0, -8:].tolist()
    right = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        logits = there(**right).logits
        for row, text in zip(logits, texts):
            alone = there(**tokenizer(text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_loss_is_the_mean_over_next_labels(trained: Any, tmp_path: Path) -> None:
    there, tokenizer = opened(exported(trained("attention"), tmp_path / "hf"))
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        found = there(ids, labels=ids)
    due = torch.nn.functional.cross_entropy(found.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(found.loss, due)


def test_byte_pairs_come_along(trained: Any, tmp_path: Path) -> None:
    run = trained("attention", "fp32", '{ use = "bpe", vocabulary = 320 }')
    _, tokenizer = opened(exported(run, tmp_path / "hf"))
    setup, _ = open_trained(run)
    ids = tokenizer(PROMPT).input_ids
    assert ids == setup.corpus.tokenizer.encode(PROMPT).tolist() and tokenizer.decode(ids) == PROMPT
    assert tokenizer.eos_token_id == setup.corpus.tokenizer.separator == 319


def test_a_tokenizer_file_goes_through(trained: Any, tmp_path: Path) -> None:
    run = trained("attention", "fp32", '{ use = "bpe", vocabulary = 320 }')
    first = exported(run, tmp_path / "first")
    second = exported(trained("attention", "fp32", f'{{ use = "file", path = "{first}" }}'), tmp_path / "second")
    due, found = (json.loads((folder / "tokenizer.json").read_text()) for folder in (first, second))
    assert found["model"] == due["model"] and found["added_tokens"] == due["added_tokens"]
    _, tokenizer = opened(second)
    setup, _ = open_trained(run)
    assert tokenizer(PROMPT).input_ids == setup.corpus.tokenizer.encode(PROMPT).tolist()
    assert tokenizer.eos_token_id == 319


@pytest.mark.parametrize("size", [1, 3])  # of one element, a strided tensor counts as contiguous and keeps its mark
def test_marked_tensors_are_written_as_their_values(tmp_path: Path, size: int) -> None:
    model = torch.nn.Module()
    conjugate = torch.complex(torch.ones(size), torch.arange(1.0, size + 1)).conj()
    model.register_buffer("conjugate", conjugate)
    model.register_buffer("imaginary", conjugate.imag)
    assert conjugate.is_conj() and conjugate.imag.is_neg()
    _write_weights(model, tmp_path / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert torch.equal(written[PREFIX + "conjugate"], conjugate)
    assert torch.equal(written[PREFIX + "imaginary"], conjugate.imag)


def test_files_tell_nothing_of_the_machine(trained: Any, tmp_path: Path) -> None:
    run = trained("resolvent")
    folder = exported(run, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    assert str(run.parent) not in json.dumps(config)
    assert config["requires"].keys() >= {"muse-core", "muse-resolvent", "muse-fast-weights"}
    weights = load_file(folder / "model.safetensors")
    setup, _ = open_trained(run)
    assert all(torch.equal(weights[f"model.{name}"], value) for name, value in setup.model.state_dict().items())
    assert all(path.stat().st_mode & stat.S_IROTH for path in folder.iterdir())


def test_refusals_leave_nothing_behind(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    assert "is not an empty directory" in refused(trained("resolvent"), full)
    assert "holds no run" in refused(tmp_path / "nowhere", tmp_path / "hf")
    assert "has no checkpoint of step 77" in refused(trained("resolvent"), tmp_path / "hf", "--step", 77)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for here in (Path("."), tmp_path / "here"):
        assert f"{here}: is the working directory, which cannot be exchanged" in refused(trained("resolvent"), here)
    (tmp_path / "here").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "modules") == ["full"]
    assert (full / "mine.txt").read_text() == "mine"


def test_a_tokenizer_that_transformers_could_not_read_is_refused() -> None:
    class Halves(ByteTokenizer):
        """Of a plugin: another way to cut, which has no form in the library."""

        def to_json(self) -> str:
            return json.dumps({"kind": "halves"})

    class Other(Tokenizer):
        separator = 0
        pieces = (b"",)

        def encode_batch(self, texts: Any) -> Any:
            return [[] for _ in texts]

        def to_json(self) -> str:
            return json.dumps({"kind": "other"})

    with pytest.raises(RecipeError, match="its tokenizer, 'other', is neither of bytes nor of byte pairs"):
        library_tokenizer(Other())
    with pytest.raises(RecipeError, match="its tokenizer, 'halves', is neither"):
        library_tokenizer(Halves())
