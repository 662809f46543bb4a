#!/usr/bin/env bash
# torch 2.13.0: torch.export.save writes a program that torch.export.load cannot read, without a word, where the module
# has a region under torch.autocast whose result nobody uses (a statistic that this caller does not ask for). The program
# runs before it is saved; loading ends with "SpecViolationError: Node.meta wrap_with_autocast is missing val field". Plain
# operations whose result nobody uses are saved and loaded. Who saves a program and deletes the model has lost it.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$work/program.py" <<'P'
import contextlib
import io
import logging

import torch

logging.disable(logging.WARNING)


class Model(torch.nn.Module):
    """The statistic is taken in fp32, as norms and losses are."""

    def __init__(self, region: bool):
        super().__init__()
        self.region = region

    def forward(self, x):
        with torch.autocast("cpu", enabled=False) if self.region else contextlib.nullcontext():
            x.mean()
        return x.cos()


def saved_and_loaded(region: bool) -> torch.Tensor:
    x = torch.ones(3)
    program = torch.export.export(Model(region), (x,))
    assert torch.equal(program.module()(x), x.cos())
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()(x)


print("torch", torch.__version__)
print("without a region:", saved_and_loaded(False).tolist())
try:
    saved_and_loaded(True)
except Exception as error:
    print(f"with one: {type(error).__name__}: {error}")
    assert "missing val field" in str(error)
else:
    raise SystemExit("a region without a used result is loaded now")
P
"$work/venv/bin/python" "$work/program.py"
