"""A program may have set torch's defaults otherwise: what MUSE computes for it does not depend on them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import muse_core
from muse_core.model.torch_defaults import own_defaults

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "The state of the union is strong."


@contextlib.contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


SET_OTHERWISE: dict[str, Callable[[], Any]] = {
    "float64": float64,
    "another device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.float16),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("setting", SET_OTHERWISE)
def test_numbers_of_an_opened_run_do_not_depend_on_what_the_program_has_set(finished_run: Path, setting: str) -> None:
    def ask() -> list[Any]:
        run = muse_core.load(finished_run)
        row = run.evaluate("held-out", tokens=256)[0]
        hidden = run.hidden_states(TEXT)["hidden"]
        logits = run.logits(TEXT)
        drawn = run.generate(TEXT, tokens=5)
        return [{one.dtype for one in run.model.parameters()}, logits.tolist(), hidden.tolist(), drawn,
                run.score(TEXT), row]

    plain = ask()
    with SET_OTHERWISE[setting]():
        assert ask() == plain


@pytest.mark.parametrize("setting", SET_OTHERWISE)
def test_a_run_does_not_depend_on_what_the_program_has_set(
    small_recipe: dict[str, Any], tmp_path: Path, setting: str
) -> None:
    """A float64 default drew other weights and trained in float64, without a word; without gradients it ended in a
    traceback."""
    keys = ("held_out_loss", "held_out_bits_per_byte", "train_tokens")

    def trained(name: str) -> dict[str, Any]:
        run = muse_core.train(small_recipe, {"train.steps": 3}, run_dir=tmp_path / name, quiet=True)
        losses = [row["loss"] for row in run.records()]
        run = muse_core.resume(tmp_path / name, extend=2, quiet=True)
        return {key: run.summary[key] for key in keys} | {"losses": losses}

    plain = trained("plain")
    before = torch.get_default_dtype()
    with SET_OTHERWISE[setting]():
        inside = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        assert trained("other") == plain
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()) == inside
    assert torch.get_default_dtype() == before


def test_training_leaves_the_programs_choice_of_deterministic_operations(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    muse_core.train(small_recipe | {"deterministic": True}, {"train.steps": 1}, run_dir=tmp_path / "run", quiet=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loop_of_ones_own_has_the_weights_and_loss_of_float32(small_recipe: dict[str, Any]) -> None:
    built = muse_core.build(small_recipe)
    plain = built.loss(built.batch(0)).item()
    with float64():
        built = muse_core.build(small_recipe)
        loss = built.loss(built.batch(0))
        loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == plain


def test_the_default_of_the_program_is_back_when_the_last_of_several_threads_has_left() -> None:
    """The first that ended took float32 from the others, and the last left float32 to the program."""
    entered, left, ended = (threading.Event() for _ in range(3))
    seen: list[torch.dtype] = []

    def other() -> None:
        with own_defaults():
            entered.set()
            assert left.wait(60)
            seen.append(torch.ones(1).dtype)
        ended.set()

    with float64():
        thread = threading.Thread(target=other)
        with own_defaults():
            thread.start()
            assert entered.wait(60)
        left.set()
        assert ended.wait(60)
        thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64
        with pytest.raises(ZeroDivisionError), own_defaults(), own_defaults():
            raise ZeroDivisionError
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default device is there")
def test_a_default_device_that_the_machine_lacks_is_no_hindrance(small_recipe: dict[str, Any]) -> None:
    with torch.device("cuda"):
        built = muse_core.build(small_recipe)
        loss = built.loss(built.batch(0))
    assert loss.device.type == "cpu" and loss.isfinite()


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_loss_records_gradients_where_the_program_does(
    small_recipe: dict[str, Any], without: Callable[[], Any]
) -> None:
    built = muse_core.build(small_recipe)
    batch = built.batch(0)
    with without():
        assert not built.loss(batch).requires_grad
    assert built.loss(batch).requires_grad


@pytest.mark.parametrize("enabled", [True, False])
def test_updates_are_seen_inside_the_programs_autocast(
    small_recipe: dict[str, Any], tmp_path: Path, enabled: bool
) -> None:
    """Every step read the weights as the first step had cast them, until the program's context ended."""
    settings = {"train.steps": 4, "train.precision": "bf16", "train.learning_rate": 0.01}

    def losses(name: str) -> list[float]:
        run = muse_core.train(small_recipe, settings, run_dir=tmp_path / name, quiet=True)
        return [row["loss"] for row in run.records()] + [run.summary["held_out_loss"]]

    def own_loop() -> list[float]:
        built = muse_core.build(small_recipe, settings)
        optimizer, found = torch.optim.SGD(built.model.parameters(), lr=0.1), []
        for step in range(3):
            loss = built.loss(built.batch(step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    plain = losses("plain"), own_loop()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        assert (losses("inside"), own_loop()) == plain
        assert torch.is_autocast_cache_enabled()
