"""A workload with device memory, by the driver's own calls: device.py PORT GPUS MIB [SHARE_OF_ZEROS]

Of every GPU it has stretches of several sizes, and a small one that is no bulk. Its canary is a checksum of all of them.
"""
import ctypes, hashlib, sys, threading, time

from serving import serve

cuda = ctypes.CDLL("libcuda.so.1")
port, gpus, mib = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
zeros = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0


def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        raise RuntimeError(f"{name}: {code}")


call("cuInit", 0)
contexts, stretches = [], []
for gpu in range(gpus):
    context = ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu)
    contexts.append(context)


def allocate(gpu, size, content):
    call("cuCtxSetCurrent", contexts[gpu])
    address = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
    call("cuMemcpyHtoD_v2", address, content, ctypes.c_size_t(size))
    stretches.append((gpu, address, size))


def pattern(size, seed):
    return b"".join(hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(64)) * (size // 2048 + 1)


for gpu in range(gpus):
    for n, size in enumerate([4096, (2 << 20) + 1, 5 << 20, (mib << 20) - (7 << 20)]):
        content = pattern(size, 10 * gpu + n)[:size]
        if n == 3:
            content = content[: int(size * (1 - zeros))].ljust(size, b"\0")
        allocate(gpu, size, content)
        # It is to be in device memory alone.
        del content
# One that came and went.
call("cuMemFree_v2", stretches.pop(2)[1])


def canary():
    total = hashlib.sha256()
    for gpu, address, size in stretches:
        call("cuCtxSetCurrent", contexts[gpu])
        content = ctypes.create_string_buffer(size)
        call("cuMemcpyDtoH_v2", content, address, ctypes.c_size_t(size))
        total.update(b"%x" % address.value)
        total.update(content.raw)
    return total.hexdigest()


def peers():
    call("cuCtxSetCurrent", contexts[0])
    call("cuCtxEnablePeerAccess", contexts[1], 0)
    return "enabled"


def managed():
    address = ctypes.c_uint64()
    call("cuMemAllocManaged", ctypes.byref(address), ctypes.c_size_t(4096), 1)
    return "allocated"


def allocating():
    def run():
        while True:
            allocate(0, 3 << 20, b"x" * (3 << 20))
            time.sleep(0.001)

    threading.Thread(target=run, daemon=True).start()
    return "started"


def more():
    allocate(0, 3 << 20, b"y" * (3 << 20))
    call("cuMemFree_v2", stretches.pop()[1])
    return "allocated and freed"


def share():
    handle = ctypes.create_string_buffer(64)
    codes = [cuda.cuIpcGetMemHandle(handle, address) for _, address, _ in stretches]
    return " ".join(map(str, codes))


def free():
    while len(stretches) > 1:
        call("cuMemFree_v2", stretches.pop()[1])
    return "freed"


DOES = {"/free": free, "/share": share, "/health": lambda: "ok", "/canary": canary, "/peers": peers, "/managed": managed, "/allocating": allocating, "/more": more}


print("serving", flush=True)
serve(port, lambda path: DOES[path](), threads=True)
