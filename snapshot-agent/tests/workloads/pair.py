"""One process on two GPUs that copy to each other, so that PyTorch has enabled access between them: pair.py PORT GIB"""
import http.server, sys

import torch

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


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(canary() if self.path == "/canary" else "ok").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.HTTPServer):
    allow_reuse_address = True


Server(("127.0.0.1", port), Handler).serve_forever()
