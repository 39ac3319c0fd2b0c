"""A workload with what processes have: memory, threads, a child behind a pipe, an open file, a listening socket.

server.py PORT FOLDER MIB START_S [CRASH]
"""
import hashlib, http.server, json, os, sys, threading, time

port, folder, mib, start_s = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
time.sleep(start_s)
memory = bytearray(mib << 20)
for page in range(0, len(memory), 4096):
    memory[page:page + 8] = (page * 2654435761 % 2**64).to_bytes(8, "little")

beats = [0] * 4


def beat(n):
    while True:
        beats[n] += 1
        time.sleep(0.001)


for n in range(len(beats)):
    threading.Thread(target=beat, args=(n,), daemon=True).start()

# A child that doubles numbers: to it and from it by pipes.
to_child, from_parent = os.pipe()[::-1]
to_parent, from_child = os.pipe()[::-1]
child = os.fork()
if child == 0:
    with os.fdopen(from_parent) as numbers, os.fdopen(to_parent, "w") as out:
        os.close(to_child)
        os.close(from_child)
        for line in numbers:
            out.write(f"{int(line) * 2}\n")
            out.flush()
    os._exit(0)
ask, answer = os.fdopen(to_child, "w"), os.fdopen(from_child)

log = open(os.path.join(folder, "log"), "w")
asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        if self.path == "/crash":
            os._exit(3)
        if self.path == "/health":
            body = b"ok"
        elif self.path == "/canary":
            body = hashlib.sha256(memory).hexdigest().encode()
        else:
            ask.write(f"{asked}\n")
            ask.flush()
            log.write("x" * 10)
            log.flush()
            body = json.dumps({
                "memory": hashlib.sha256(memory).hexdigest(), "pid": os.getpid(), "asked": asked, "beats": min(beats),
                "doubled": int(answer.readline()), "at": log.tell(), "environment": os.environ.get("MODEL"),
            }).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        print("served", self.path, flush=True)


class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True


print("serving", flush=True)
Server(("127.0.0.1", port), Handler).serve_forever()
