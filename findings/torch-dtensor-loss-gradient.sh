#!/usr/bin/env bash
# torch 2.13.0: mse_loss of DTensors that are split over two processes returns the right loss and a gradient twice too
# large, without a word; so do huber_loss and smooth_l1_loss. The mean of the squares, l1_loss and
# binary_cross_entropy_with_logits of the same tensors have the gradient of one process. In an uneven split (3 rows,
# documented as experimental) the loss of mse_loss is wrong too: the mean of the two processes' means.
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
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.nn import functional as F

LOSSES = {  # the factor of the gradient on two processes
    "mean of squares": (lambda x, y: ((x - y) ** 2).mean(), 1),
    "l1_loss": (F.l1_loss, 1),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, 1),
    "mse_loss": (F.mse_loss, 2),
    "huber_loss": (F.huber_loss, 2),
    "smooth_l1_loss": (F.smooth_l1_loss, 2),
}


def main(rank, file):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{file}")
    mesh = init_device_mesh("cpu", (2,))
    y = torch.zeros(4, 2)
    for name, (loss, factor) in LOSSES.items():
        x = (torch.arange(8.0).reshape(4, 2) / 4).requires_grad_()
        split = distribute_tensor(x.detach(), mesh, [Shard(0)]).requires_grad_()
        one, two = loss(x, y), loss(split, distribute_tensor(y, mesh, [Shard(0)]))
        one.backward()
        two.backward()
        whole, gradient = two.full_tensor(), split.grad.full_tensor()
        if rank == 0:
            print(f"{name}: loss {one:.4f} on one process, {whole:.4f} on two;"
                  f" last gradient {x.grad[-1, -1]:.4f} and {gradient[-1, -1]:.4f}")
        assert torch.allclose(whole, one), name
        assert torch.allclose(gradient, factor * x.grad), name
    x, y = torch.tensor([[0.0], [0.0], [3.0]]), torch.zeros(3, 1)
    uneven = F.mse_loss(*(distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (x, y))).full_tensor()
    if rank == 0:
        print(f"mse_loss of 3 rows: {F.mse_loss(x, y):.4f} on one process, {uneven:.4f} on two")
    assert uneven == 4.5
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(main, (sys.argv[1],), nprocs=2)
P
"$work/venv/bin/python" "$work/program.py" "$work/store"
