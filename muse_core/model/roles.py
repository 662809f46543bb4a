"""Roles of parameters, read off their names and owners. Weight decay, Muon and initializers follow them."""

from __future__ import annotations

from torch import nn

MATRIX, EMBEDDING, VECTOR, DYNAMICS = "matrix", "embedding", "vector", "dynamics"
ROLES = (MATRIX, EMBEDDING, VECTOR, DYNAMICS)


def parameter_roles(model: nn.Module, under: str = "") -> dict[str, str]:
    """Role of every parameter by full name: ``dynamics`` inside a submodule of that name; ``embedding`` for embedding
    tables and the output head; ``matrix`` for other parameters of two axes or more; ``vector`` for the rest. ``under``:
    the full name of ``model`` where it is a part of one."""
    roles: dict[str, str] = {}
    for path, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            name = ".".join(part for part in (under, path, local) if part)
            parts = name.split(".")
            if "dynamics" in parts:
                roles[name] = DYNAMICS
            elif isinstance(module, nn.Embedding) or parts[0] == "head":
                roles[name] = EMBEDDING
            elif parameter.ndim >= 2:
                roles[name] = MATRIX
            else:
                roles[name] = VECTOR
    return roles
