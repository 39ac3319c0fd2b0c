"""Ranks of one workload, a GPU each, that add up by NCCL: ranks.py PORT GIB [RANKS]

A launcher without CUDA serves, and passes what it is asked on to the ranks. '/down' ends their communicators, '/up' makes them
again at a new rendezvous: a communicator cannot be captured. The canary is every rank's checksum of all of its device memory,
and the sum that NCCL makes of what each has.
"""
import json, os, subprocess, sys, tempfile, threading

from serving import serve

port, gib = int(sys.argv[1]), float(sys.argv[2])
ranks = int(sys.argv[3]) if len(sys.argv) > 3 else 2


def rank(number):
    import torch
    import torch.distributed as distributed

    torch.cuda.set_device(number)
    torch.manual_seed(7 + number)
    each = 256 << 20
    parts = [torch.randint(-2**31, 2**31 - 1, (each // 4,), dtype=torch.int32, device="cuda") for _ in range(int(gib * 4))]
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def up(rendezvous):
        distributed.init_process_group("nccl", init_method=f"file://{rendezvous}", rank=number, world_size=ranks)
        return total()

    def down(_):
        if distributed.is_initialized():
            torch.cuda.synchronize()
            distributed.destroy_process_group()
        torch.cuda.empty_cache()

    def total():
        some = parts[0][: 1 << 20].to(torch.int64)
        distributed.all_reduce(some)
        return int(some.sum())

    def canary(_):
        return [sum(int(part.sum(dtype=torch.int64)) for part in parts), total()]

    for line in sys.stdin:
        what, rendezvous = json.loads(line)
        answer = {"up": up, "down": down, "canary": canary}[what](rendezvous)
        torch.cuda.synchronize()
        print(json.dumps(answer), file=reply, flush=True)


if len(sys.argv) > 4:
    rank(int(sys.argv[4]))
    sys.exit()

arguments = [sys.executable, __file__, str(port), str(gib), str(ranks)]
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
children = [subprocess.Popen([*arguments, str(number)], **pipes) for number in range(ranks)]
turn = threading.Lock()


def ask(what):
    with turn:
        rendezvous = tempfile.mktemp(prefix="rendezvous-")
        for child in children:
            child.stdin.write(json.dumps([what, rendezvous]) + "\n")
            child.stdin.flush()
        return [json.loads(child.stdout.readline()) for child in children]


def answer(path):
    what = path.strip("/")
    return json.dumps(ask(what) if what in ("up", "down", "canary") else "ok")


ask("up")
print(f"{ranks} ranks serve {gib} GiB each", flush=True)
serve(port, answer)
