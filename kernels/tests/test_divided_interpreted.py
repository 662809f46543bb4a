"""Rows whose tokens are divided among processes: every process computes its part, and the carries of all are gathered.

TRITON_INTERPRET=1 pytest kernels/tests
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from muse_kernels.testing.fast_weights import draw as draw_writes
from muse_kernels.torch import causal_resolvent_apply, fast_weights

resolvent = pytest.importorskip("muse_kernels.triton.resolvent.part_of_apply")
tiles = pytest.importorskip("muse_kernels.triton.resolvent.tiles")
pieces = pytest.importorskip("muse_kernels.triton.fast_weights.pieces")
kernels = pytest.importorskip("muse_kernels.triton")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton reads TRITON_INTERPRET=1 when it is imported"
)

CLOSE = 4e-6


def on_parts(parts, run):
    """What ``run(rank, collect)`` gives in each of so many threads, of which one runs at a time."""
    meeting, turn, table = threading.Barrier(parts), threading.Lock(), [None] * parts

    def one(rank):
        def collect(value):
            assert value.is_contiguous() and not value.is_complex(), "what torch.distributed takes"
            table[rank] = value.detach().clone()
            turn.release()
            meeting.wait(timeout=60)
            values = torch.stack(list(table))
            meeting.wait(timeout=60)
            turn.acquire()
            return values

        with turn:
            return run(rank, collect)

    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(one, range(parts)))


def differences(found, wanted):
    """The largest difference of each pair over the largest entry."""
    return [((one - other).abs().max() / other.abs().max()).item() for one, other in zip(found, wanted, strict=True)]


def doubled(leaves):
    return [x.to(torch.complex128 if x.is_complex() else torch.float64).requires_grad_() for x in leaves]


@pytest.mark.parametrize("constant, parts", ((False, 3), (True, 2)))
def test_the_resolvent_of_parts_is_that_of_the_row(constant, parts):
    """With a document's start within, theta and y before the row; every gradient."""
    heads, size, width = 1, 8, 3
    sites = parts * size
    generator = torch.Generator().manual_seed(parts)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    lower = (1 + 0.1 * draw(1, heads, 1)).repeat(1, 1, 1 if constant else sites)
    if not constant:
        lower[..., 5] = 0
    leaves = [
        torch.complex(draw(1, heads, sites), -0.1 * draw(1, heads, sites).abs()), lower,
        torch.complex(draw(heads, 1), 0.05 + draw(heads, 1).abs()), draw(1, heads, sites, width),
        torch.complex(draw(1, heads), 1 + draw(1, heads).abs()), torch.complex(*draw(2, 1, heads, width)),
    ]
    weights = torch.complex(*draw(2, 1, heads, sites, width)), torch.complex(*draw(2, 1, heads, sites))
    chunks = resolvent.Sizes(tiles.Tile(2, 4, 1), tiles.Tile(2, 4, 1), tiles.ColumnTile(2, 2, 2, 3, 1, late=2))

    def loss(results, here):
        (y, theta), one, other = results, weights[0][..., here, :], weights[1][..., here]
        return (one.to(y.dtype) * y).sum().real + (other.to(y.dtype) * theta).sum().real

    wanted = doubled(leaves)
    diagonal, coupling, energy, values, theta, y = wanted
    results, final = causal_resolvent_apply(diagonal, coupling, coupling, energy, values, initial=(theta, y))
    gradients = torch.autograd.grad(loss(results, slice(None)), wanted)

    gathered = []

    def run(rank, collect):
        def counted(value):
            gathered.append(rank)
            return collect(value)

        own, here = [x.clone().requires_grad_() for x in leaves], slice(rank * size, (rank + 1) * size)
        diagonal, coupling, energy, values, theta, y = own
        coupling = coupling if constant else coupling[..., here]
        results, final = resolvent.apply_to_part(
            counted, rank, diagonal[..., here], coupling, coupling, energy, values[..., here, :], initial=(theta, y),
            sizes=chunks,
        )
        return [x.detach() for x in (*results, *final)], torch.autograd.grad(loss(results, here), own)

    found = on_parts(parts, run)
    whole = [torch.cat([one[0][0] for one in found], -2), torch.cat([one[0][1] for one in found], -1)]
    assert max(differences(whole, results)) < CLOSE
    assert all(max(differences(one[0][2:], final)) < CLOSE for one in found), "the same state in every process"
    assert max(differences([sum(x) for x in zip(*(one[1] for one in found), strict=True)], gradients)) < CLOSE
    assert len(gathered) == 4 * parts, "theta's chunks and y's, and the adjoints of both"


@pytest.mark.parametrize("parts", (2, 3))
def test_what_is_gathered_at_once_is_what_is_gathered_apart(parts):
    """In float64, to the last bit; of chunks of vectors and of matrices."""
    generator = torch.Generator().manual_seed(parts)
    factors = torch.randn(parts, 2, 4, 2, generator=generator, dtype=torch.float64)
    terms = torch.randn(parts, 2, 4, 5, 2, generator=generator, dtype=torch.float64)

    def run(rank, collect):
        part = resolvent.Part(collect, rank)
        return part._joined(factors[rank], terms[rank]), part._joined(factors[rank])[0], part._joined(terms[rank])[0]

    for (factor, term), alone, other in on_parts(parts, run):
        assert torch.equal(factor, alone) and torch.equal(term, other)
        assert torch.equal(factor, torch.cat(list(factors), 1)) and torch.equal(term, torch.cat(list(terms), 1))


@pytest.mark.parametrize("rule, parts, cuts", (("delta", 2, 1), ("delta", 3, 2), ("hebbian", 2, 2)))
def test_fast_weights_of_parts_are_those_of_the_row(rule, parts, cuts, monkeypatch):
    monkeypatch.setattr(pieces, "pieces_of", lambda *_: cuts)
    size = 32
    problem = draw_writes(parts * size, batch=1, heads=2, key_width=16, value_width=16, resets=True,
                          dtype=torch.float32)
    writes = [x.detach() for x in (problem.query, problem.key, problem.value, problem.log_decay, problem.rate)]
    leaves = [*writes, problem.initial.detach().float()]
    weights = torch.randn(leaves[2].shape, generator=torch.Generator().manual_seed(0))
    wanted = doubled(leaves)
    output, final = fast_weights(*wanted[:5], rule=rule, initial=wanted[5], resets=problem.resets)
    gradients = torch.autograd.grad((weights.double() * output).sum(), wanted)

    def run(rank, collect):
        own, here = [x.clone().requires_grad_() for x in leaves], slice(rank * size, (rank + 1) * size)
        output, final = kernels.fast_weights.divided(
            collect, rank, *(x[:, here] for x in own[:5]), rule=rule, initial=own[5], resets=problem.resets[:, here],
            chunk=16,
        )
        loss = (weights[:, here] * output).sum()
        return output.detach(), final, torch.autograd.grad(loss, own)

    found = on_parts(parts, run)
    assert max(differences([torch.cat([one[0] for one in found], 1)], [output])) < CLOSE
    assert all(max(differences([one[1]], [final])) < CLOSE for one in found)
    assert max(differences([sum(x) for x in zip(*(one[2] for one in found), strict=True)], gradients)) < CLOSE


def test_a_part_that_no_chunks_make_up_is_left_to_others():
    assert resolvent.sizes_of(8, 2**19, 32) is not None and resolvent.sizes_of(8, 500, 32) is None
