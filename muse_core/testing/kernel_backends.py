"""The conformance suite of kernel backends: every operation against the float64 reference of muse-kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_core.component import load
from muse_core.contracts import KernelRequest
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite

Arguments = dict[str, Any]

TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 3e-2}
"""Largest error relative to the largest magnitude; in fp32 the problems' own condition (1/η = 4) is in it."""

PLACES = (("cpu", "float32"), ("cpu", "float64"), ("cuda", "float32"), ("cuda", "bfloat16"))
"""Device and dtype of the comparisons; those of a GPU where there is one."""

SIZES = {"key": 4, "value": 5}
"""Head sizes of the fast-weights problems."""

HALVED = {
    "causal_convolution": ("x",),
    "decayed_scores": ("query", "key", "probe", "insert"),
    "deep_memory": ("query", "key", "value"),
    "fast_weights": ("query", "key", "value"),
    "gated_norm": ("x", "gate", "behind"),
    "short_convolution": ("x",),
    "trace_attention": ("query", "key", "value"),
}
"""What arrives in bf16 under autocast, by operation; the others' arguments are fp32 then."""

NEEDS = ("gradient", "resets", "group", "double_backward")


class KernelBackendSuite(Suite):
    """A rank, operations and honest refusals; see ``contracts.KernelBackend``."""

    kind = "kernel backend"
    tokens = 11

    def test_has_a_rank(self, case: Case) -> None:
        rank = self.build(case).rank
        assert isinstance(rank, int), f"rank is {rank!r}, not a whole number"

    def test_answers_every_request(self, case: Case) -> None:
        """None or a sentence, whatever is asked, also what it cannot know."""
        backend = self.build(case)
        for operation, device, dtype, needs in itertools.product(
            (*backend.operations(), "an operation of a later version"),
            ("cpu", "cuda"),
            ("float32", "bfloat16", "float64"),
            (frozenset(), frozenset({"gradient"}), frozenset(NEEDS)),
        ):
            answer = backend.refuse(KernelRequest(operation, device, dtype, {"key": 8, "value": 8}, needs))
            assert answer is None or (isinstance(answer, str) and answer), f"refuse returned {answer!r}"

    def test_operations_can_be_imported_unless_refused_everywhere(self, case: Case) -> None:
        backend = self.build(case)
        assert backend.operations(), "a backend without operations serves nothing"
        for operation, reference in backend.operations().items():
            if self.serves(backend, operation, "float32") or self.serves(backend, operation, "float64"):
                assert callable(load(reference)), f"{operation}: {reference} is not callable"

    def serves(self, backend: Any, operation: str, dtype: str) -> bool:
        return backend.refuse(KernelRequest(operation, "cpu", dtype, SIZES)) is None

    @pytest.mark.parametrize("device, dtype", PLACES)
    def test_agrees_with_the_reference(self, case: Case, device: str, dtype: str) -> None:
        """Results, carried state and gradients of every input, on the same rounded inputs.

        A problem that the backend refuses is left out, and its gradients where it refuses those; skipped with the
        reason where nothing is left. An operation that muse-kernels does not define is compared where the backend has
        ``problems(tokens)``: operation → its float64 reference as ``"module:function"``, and arguments by name.
        """
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        backend = self.build(case)
        compared, reason = 0, None
        own = backend.problems(self.tokens) if hasattr(backend, "problems") else {}
        for operation, implementation in backend.operations().items():
            if operation not in PROBLEMS and operation not in own:
                reason = f"{operation}: muse-kernels does not define it, and the backend has no problems for it"
                continue
            if dtype == "bfloat16" and operation not in HALVED and operation not in own:
                continue
            reference, problems = own.get(operation) or (f"muse_kernels.reference:{operation}", None)
            reference = load(reference)
            for name, arguments in (problems or PROBLEMS[operation](self.tokens)).items():
                resets = {"resets"} & arguments.keys()
                requests = [
                    KernelRequest(operation, device, dtype, SIZES, frozenset(needs | resets))
                    for needs in ({"gradient"}, set())
                ]
                served = [request for request in requests if backend.refuse(request) is None]
                if not served:
                    reason = f"{operation}, {name}: {backend.refuse(requests[-1])}"
                    continue
                compared += 1
                gradients = "gradient" in served[0].needs
                halved = HALVED.get(operation, ())
                rounded = {key: _rounded(value, dtype, key in halved) for key, value in arguments.items()}
                double = {key: _rounded(value, "float64") for key, value in rounded.items()}
                given = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in rounded.items()}
                expected = results(reference, double, gradients)
                actual = results(load(implementation), given, gradients)
                assert actual.keys() == expected.keys(), (
                    f"{operation}, {name}: returns {sorted(actual)} where {sorted(expected)} are due"
                )
                for what, value in expected.items():
                    assert actual[what].shape == value.shape, f"{operation}, {name}, {what}: another shape"
                    if not value.numel():
                        continue
                    # What vanishes, as a gradient through a softmax of one token, leaves the rounding of its terms.
                    scale = max(1e-2, value.abs().max().item())
                    worst = (actual[what].to(value.device, value.dtype) - value).abs().max().item() / scale
                    assert worst <= TOLERANCE[dtype], f"{operation}, {name}, {what}: off by {worst:.2g} of the largest"
        if not compared:
            pytest.skip(f"refused: {reason}")


def results(function: Callable[..., Any], arguments: Arguments, gradients: bool = True) -> dict[str, Tensor]:
    """Every tensor that the function returns and, with ``gradients``, that of every floating input."""
    inputs = {key: value.detach().clone() for key, value in arguments.items() if isinstance(value, Tensor)}
    leaves = {key: value.requires_grad_() for key, value in inputs.items() if not value.dtype == torch.bool}
    returned = _flat(function(**(arguments | inputs)))
    if not gradients:
        return {key: value.detach() for key, value in returned.items()}
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros((), dtype=torch.float64)
    for value in returned.values():
        real = torch.view_as_real(value) if value.is_complex() else value
        weight = torch.randn(real.shape, generator=generator, dtype=torch.float64)
        total = total + (real.double().cpu() * weight).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    reached = {f"gradient of {key}": value for key, value in zip(leaves, found) if value is not None}
    return {key: value.detach() for key, value in returned.items()} | reached


def _flat(value: Any, path: str = "result") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {path: value.double() if value.dtype == torch.bool else value}
    if value is None:
        return {}
    return {key: leaf for index, part in enumerate(value) for key, leaf in _flat(part, f"{path}[{index}]").items()}


def _rounded(value: Any, dtype: str, halved: bool = False) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return value
    if dtype == "bfloat16" and not value.is_complex():
        return value.to(torch.bfloat16 if halved else torch.float32)
    dtype = "float32" if dtype == "bfloat16" else dtype
    real, complex_ = {"float32": (torch.float32, torch.complex64), "float64": (torch.float64, torch.complex128)}[dtype]
    return value.to(complex_ if value.is_complex() else real)


def _hamiltonian(tokens: int) -> Arguments:
    """Two rows, three heads: V − iΓ, conjugate couplings, Im z = 0.25, a document boundary."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lower = torch.polar(0.6 + 0.4 * normal(2, 3, tokens).tanh().abs(), normal(2, 3, tokens))
    lower[..., tokens // 2] = 0
    return {
        "diagonal": torch.complex(normal(2, 3, tokens), -normal(2, 3, tokens).abs()),
        "lower": lower,
        "upper": lower.conj().resolve_conj(),
        "energy": torch.complex(normal(2, 3, 1), torch.full((2, 3, 1), 0.25, dtype=torch.float64)),
    }


def _resolvent(tokens: int) -> dict[str, Arguments]:
    return {"boundary": _hamiltonian(tokens), "one token": _hamiltonian(1)}


def _carried(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(2)
    initial = torch.complex(*torch.randn(2, 2, 3, generator=generator, dtype=torch.float64))
    return _resolvent(tokens) | {"carried": _hamiltonian(tokens) | {"initial": initial}}


def _applied(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: _hamiltonian(length) | {"values": torch.randn(2, 3, length, 4, generator=generator, dtype=torch.float64)}
        for name, length in (("boundary", tokens), ("one token", 1))
    }


def _fast_weights(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def problem(rule: str, read: str, **more: Any) -> Arguments:
        return {
            "query": normal(2, tokens, 3, 4),
            "key": torch.nn.functional.normalize(normal(2, tokens, 3, 4), dim=-1),
            "value": normal(2, tokens, 3, 5),
            "log_decay": -0.3 * normal(2, tokens, 3).abs(),
            "rate": normal(2, tokens, 3).sigmoid(),
            "rule": rule,
            "read": read,
        } | more

    resets = torch.zeros(2, tokens, dtype=torch.bool)
    resets[0, 0] = resets[1, tokens // 2] = True
    carried = {"initial": normal(2, 3, 4, 5), "chunk": 4}
    return {
        f"{rule}, read {read}, {name}": problem(rule, read, **more)
        for rule in ("hebbian", "delta")
        for read in ("after", "before")
        for name, more in (("start", {}), ("carried", carried), ("resets", carried | {"resets": resets}))
    }


def _decayed(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(10)

    def problem(**more: Any) -> Arguments:
        normal = [torch.randn(2, tokens, 3, 4, generator=generator, dtype=torch.float64) for _ in range(5)]
        query, key, decay, probe, insert = normal
        removed = {"probe": probe, "insert": insert} if more.pop("removes", True) else {}
        return {"query": query, "key": key, "log_decay": -decay.abs(), "chunk": 8} | removed | more

    resets = torch.zeros(2, tokens, dtype=torch.bool)
    resets[0, 0] = resets[1, tokens // 2] = True
    return {
        "removing": problem(),
        "removing, resets": problem(resets=resets, chunk=32),
        "nothing removed": problem(removes=False, resets=resets),
    }


def _deep_memory(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    resets = torch.zeros(2, tokens, dtype=torch.bool)
    resets[0, 0] = resets[1, tokens // 2] = True
    problem = {
        "query": normal(2, tokens, 3, 4),
        "key": torch.nn.functional.normalize(normal(2, tokens, 3, 4), dim=-1),
        "value": normal(2, tokens, 3, 4),
        "rate": 0.1 * normal(2, tokens, 3).sigmoid(),
        "log_momentum": -normal(2, tokens, 3).abs(),
        "log_decay": -0.1 * normal(2, tokens, 3).abs(),
        "weights": 0.5 * normal(3, 3, 4, 5),
        "chunk": 4,
    }
    return {
        "gradient": problem | {"orthogonalise": False},
        "gradient, resets": problem | {"orthogonalise": False, "resets": resets, "offset": 3, "window": 2},
        "orthogonalised": problem | {"chunk": 8},
    }


def _gated(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(6)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads, token = normal(2, tokens, 3, 5), torch.complex(normal(2, tokens, 5), normal(2, tokens, 5))
    return {
        "heads": {"x": heads, "weight": normal(5), "gate": normal(2, tokens, 3, 5)},
        "complex": {"x": token, "weight": normal(10), "gate": normal(2, tokens, 5)},
        "no gate": {"x": heads, "weight": normal(5), "gate": None},
        "no gain": {"x": token, "weight": None, "gate": normal(2, tokens, 5)},
        "more behind": {"x": token, "weight": normal(10), "gate": normal(2, tokens, 5), "behind": normal(2, tokens, 3)},
    }


def _convolved(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    resets = torch.zeros(2, tokens, dtype=torch.bool)
    resets[0, 0] = resets[1, tokens // 2] = True
    problem = {"x": normal(2, tokens, 39), "taps": normal(3, 39), "heads": 3, "key_width": 4}
    carried = {"initial": normal(2, 2, 39)}
    return {
        "start": problem,
        "carried": problem | carried,
        "resets": problem | carried | {"resets": resets},
        "one token": problem | carried | {"x": normal(2, 1, 39)},
    }


def _summed(tokens: int) -> dict[str, Arguments]:
    """Those of the short convolution, without its heads."""
    heads = {"heads", "key_width"}
    return {name: {k: v for k, v in one.items() if k not in heads} for name, one in _convolved(tokens).items()}


def _traced(tokens: int) -> dict[str, Arguments]:
    generator = torch.Generator().manual_seed(8)

    def problem(length: int, **more: Any) -> Arguments:
        shapes = {"query": (2, length, 4, 4), "key": (2, length, 2, 4), "value": (2, length, 2, 5)}
        given = {key: torch.randn(*shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
        shares = torch.rand(2, length, 4, generator=generator, dtype=torch.float64)
        return given | {"bound": (0.2 + shares).cumsum(1).sqrt()} | more

    resets = torch.zeros(2, tokens, dtype=torch.bool)
    resets[0, 0] = resets[1, tokens // 2] = True
    return {
        "start": problem(tokens),
        "window, early knee": problem(tokens, window=4, knee=0.1),
        "resets": problem(tokens, resets=resets),
        "one token": problem(1),
    }


PROBLEMS: dict[str, Callable[[int], dict[str, Arguments]]] = {
    "causal_convolution": _summed,
    "resolvent_diagonal": _resolvent,
    "causal_resolvent_diagonal": _carried,
    "causal_resolvent_apply": _applied,
    "decayed_scores": _decayed,
    "deep_memory": _deep_memory,
    "fast_weights": _fast_weights,
    "gated_norm": _gated,
    "short_convolution": _convolved,
    "trace_attention": _traced,
}
"""Operation → problems by name."""
