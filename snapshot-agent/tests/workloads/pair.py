"""One process on two GPUs that copy to each other, so that PyTorch has enabled access between them: pair.py PORT GIB"""
import sys

import torch

from serving import serve

port, gib = int(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(7)
each = 256 << 20
parts = [
    torch.randint(-2**31, 2**31 - 1, (each // 4,), dtype=torch.int32, device=f"cuda:{n % 2}") for n in range(int(gib * 4))
]


def canary():
    total = 0
    for n, part in enumerate(parts):
        there = part[: 1 << 20].to(f"cuda:{(n + 1) % 2}")
        total += int(part.sum(dtype=torch.int64)) + 3 * int(there.sum(dtype=torch.int64))
    return total


print("sum", canary(), flush=True)


serve(port, lambda path: str(canary()) if path == "/canary" else "ok")
