"""The notebooks run as they stand, cell by cell, each value that a cell ends with being shown."""

from __future__ import annotations

import ast
import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))


def run_cells(path: Path) -> list[Any]:
    """The value of the last expression of each code cell, None where it ends with none; all cells share their names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        where = f"{path.name}#{cell['id']}"
        tree = ast.parse("".join(cell["source"]), where)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, where, "exec"), names)
        shown.append(None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), names))
    return shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


def test_the_first_steps_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUSE_CACHE", str(tmp_path / "cache"))
    _, run, records, score, states, compared, rows, losses = run_cells(ROOT / "examples" / "first-steps.ipynb")
    assert run.step == 60 and records.loss.iloc[-1] < records.loss.iloc[0] - 1.0
    assert 1.0 < score["bits_per_byte"] < 6.0 and set(rows.suite) == {"length", "recall"}
    assert losses[-1] < losses[0] and (tmp_path / "runs" / "first-steps" / "summary.json").is_file()
    assert list(states) == ["embedding", "blocks.0", "hidden"] and compared.verdict.tolist()[0] == "better"
    page = (ROOT / "docs" / "guide" / "python.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"^```pycon\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    example = doctest.DocTestParser().get_doctest(session, {}, "python.md", "python.md", 0)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
