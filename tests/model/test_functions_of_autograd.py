"""torch 2.11 compiles a forward pass of an autograd.Function that changes in place what it returns to a graph
whose gradient goes to another output, silently (docs/results/peers-on-a-gpu.md, "Compiled models lost gradients").
Later torch does not, so that no number of a CPU's tests shows it: the sources are read instead."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("muse_core", "kernels/src", "plugins") for path in (ROOT / folder).rglob("*.py")
    if "tests" not in path.parts
)


def in_place(source: str) -> list[str]:
    """Lines of forward passes that call a method in place, or assign to a part or with an operation."""
    found = []
    for one in ast.walk(ast.parse(source)):
        if not isinstance(one, ast.ClassDef) or not any("autograd.Function" in ast.unparse(base) for base in one.bases):
            continue
        forward = next(part for part in one.body if isinstance(part, ast.FunctionDef) and part.name == "forward")
        for node in ast.walk(forward):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
            method = called and called.endswith("_") and not called.endswith("__")
            parts = isinstance(node, ast.Assign) and any(isinstance(target, ast.Subscript) for target in node.targets)
            if method or parts or isinstance(node, ast.AugAssign):
                found.append(f"{one.name}.forward: {ast.unparse(node)}")
    return found


def test_no_forward_pass_of_ours_works_in_place() -> None:
    functions = [path for path in SOURCES if "autograd.Function)" in path.read_text()]
    assert len(functions) >= 8
    assert {str(path.relative_to(ROOT)): lines for path in functions if (lines := in_place(path.read_text()))} == {}


@pytest.mark.parametrize("line", ["y.addcmul_(x, x)", "y += x", "y[0] = x[0]"])
def test_one_that_does_is_found(line: str) -> None:
    head = "class F(torch.autograd.Function):\n    def forward(ctx, x):\n"
    text = head + "".join(f"        {one}\n" for one in ("y = x * 1", line, "return y"))
    assert len(in_place(text)) == 1
    assert in_place(text.replace(line, "y = torch.addcmul(y, x, x)")) == []
