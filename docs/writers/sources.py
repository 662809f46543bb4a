"""Classes and functions read from source text, so that the pages need neither torch nor a GPU's libraries."""

from __future__ import annotations

import ast
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]


@attrs.frozen(kw_only=True)
class Described:
    """A class, function or value with what stands beside it."""

    name: str
    node: ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign
    doc: str

    @property
    def signature(self) -> str:
        """The definition's first lines, without decorators and body."""
        if isinstance(self.node, ast.FunctionDef):
            result = f" -> {ast.unparse(self.node.returns)}" if self.node.returns else ""
            short = f"def {self.name}({ast.unparse(self.node.args)}){result}"
            return short if len(short) <= 100 else _broken(self.node, result)
        if isinstance(self.node, ast.ClassDef):
            bases = ", ".join(map(ast.unparse, self.node.bases))
            return f"class {self.name}({bases})" if bases else f"class {self.name}"
        return ast.unparse(self.node)


def members(scope: ast.Module | ast.ClassDef) -> list[Described]:
    """Public classes, functions and values of a module or class, each with its docstring or the string under it."""
    found = []
    for statement, following in zip(scope.body, [*scope.body[1:], None]):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            name, doc = statement.name, ast.get_docstring(statement) or ""
        elif isinstance(statement, ast.AnnAssign | ast.Assign):
            name, doc = ast.unparse(_target(statement)), _string(following)
        else:
            continue
        if not name.startswith("_"):
            found.append(Described(name=name, node=statement, doc=doc))
    return found


def module(path: str) -> ast.Module:
    """The syntax of a file of the repository."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def member(scope: ast.Module | ast.ClassDef, name: str) -> Described:
    """The public member of this name. Raises KeyError."""
    return {one.name: one for one in members(scope)}[name]


def file_of(module_name: str) -> str:
    """Repository path of a module of this project: ``muse_fast_weights.layer`` → plugins/fast-weights/src/…/layer.py.

    Raises FileNotFoundError.
    """
    relative = module_name.replace(".", "/")
    for folder in ("", "kernels/src/", *(f"{path.relative_to(ROOT)}/" for path in ROOT.glob("plugins/*/src"))):
        for candidate in (f"{folder}{relative}.py", f"{folder}{relative}/__init__.py"):
            if (ROOT / candidate).is_file():
                return candidate
    raise FileNotFoundError(f"no file of this repository is the module {module_name}")


def _target(statement: ast.Assign | ast.AnnAssign) -> ast.expr:
    return statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]


def _string(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return statement.value.value if isinstance(statement.value.value, str) else ""
    return ""


def _broken(node: ast.FunctionDef, result: str) -> str:
    """A long signature with one parameter a line."""
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    lines = [_parameter(*pair) for pair in zip(plain, defaults)]
    lines += ["*"] if arguments.kwonlyargs else []
    lines += [_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    return "\n".join([f"def {node.name}(", *(f"    {line}," for line in lines), f"){result}"])


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return f"{argument.arg}{kind}"
    return f"{argument.arg}{kind} = {ast.unparse(default)}" if kind else f"{argument.arg}={ast.unparse(default)}"
