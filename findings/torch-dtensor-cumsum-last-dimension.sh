#!/usr/bin/env bash
# torch 2.13.0: cumsum, cumprod and logcumsumexp of a DTensor that is split along the dimension of the sum are right
# with dim=1 and wrong with dim=-1, the same dimension of a matrix: each process begins anew with its own part, and the
# parts are handed on as the whole. Nothing is said. Gradients are wrong with them. sum, softmax, logsumexp, amax and
# flip take both. A negative number is not counted from the end before it is compared with the dimension that is split.
# A sequence that is split over processes along its last dimension has the cumulative sums of its pieces.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/program.py" <<'P'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

SCANS = (torch.cumsum, torch.cumprod, torch.logcumsumexp)
OTHERS = (torch.sum, torch.softmax, torch.logsumexp, torch.amax, torch.flip)


def main(rank, file):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{file}")
    mesh = init_device_mesh("cpu", (2,))
    ones = torch.ones(1, 6, dtype=torch.float64)
    split = distribute_tensor(ones, mesh, [Shard(1)])
    for dim in (1, -1):
        sums = split.cumsum(dim).full_tensor()[0].tolist()
        if rank == 0:
            print(f"six ones, cumsum along {dim}: {sums}")
        assert sums == ([1, 2, 3, 4, 5, 6] if dim == 1 else [1, 2, 3, 1, 2, 3])
    x = torch.rand(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    for function in SCANS + OTHERS:
        for dim in (1, -1):
            right = function not in SCANS or dim == 1
            whole, split = x.clone().requires_grad_(), distribute_tensor(x, mesh, [Shard(1)]).requires_grad_()
            one, two = (function(each, (dim,) if function is torch.flip else dim) for each in (whole, split))
            off = (two.full_tensor() - one).abs().max().item()
            text = f"{function.__name__} along {dim}: off by {off:.1e} where the largest is {one.abs().max():.2f}"
            assert (off < 1e-12) == right, text
            if function is not torch.cumprod:  # whose gradient raises an error for a DTensor
                (one**2).sum().backward()
                (two.redistribute(placements=[Replicate()]) ** 2).sum().backward()
                slope = (split.grad.full_tensor() - whole.grad).abs().max().item()
                text += f", gradient off by {slope:.1e} of {whole.grad.abs().max():.2f}"
                assert (slope < 1e-12) == right, text
            if rank == 0:
                print(text)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(main, (sys.argv[1],), nprocs=2)
P
"$work/venv/bin/python" "$work/program.py" "$work/store"
