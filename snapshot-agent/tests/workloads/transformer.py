"""An inference server: a transformer of Llama 2's 7B shape with random weights, compiled, its steps captured as CUDA graphs:
transformer.py PORT. /canary answers the tokens of a prompt, /rate the tokens a second of a long answer."""
import sys, time

from serving import serve

began = time.time()
import torch, torch._inductor.async_compile
import torch.nn.functional as F

port = int(sys.argv[1])
WIDTH, HEADS, LAYERS, INNER, WORDS, CONTEXT = 4096, 32, 32, 11008, 32000, 2048
torch.manual_seed(7)
torch.set_default_device("cuda")
torch.set_default_dtype(torch.bfloat16)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = torch.nn.RMSNorm(WIDTH), torch.nn.RMSNorm(WIDTH)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False), torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = torch.nn.Linear(WIDTH, 2 * INNER, bias=False), torch.nn.Linear(INNER, WIDTH, bias=False)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, HEADS, CONTEXT, WIDTH // HEADS))

    def forward(self, x, at, turn, mask):
        q, k, v = self.qkv(self.before(x)).view(1, 1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k = (turned(part, turn) for part in (q, k))
        self.keys.index_copy_(2, at, k)
        self.values.index_copy_(2, at, v)
        seen = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(1, 1, WIDTH))
        gate, up = self.up(self.between(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def turned(x, turn):
    a, b = x.chunk(2, dim=-1)
    cos, sin = turn
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.last, self.head = torch.nn.RMSNorm(WIDTH), torch.nn.Linear(WIDTH, WORDS, bias=False)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(CONTEXT).float(), 1e4 ** (-torch.arange(half).float() / half))
        self.register_buffer("places", torch.arange(CONTEXT))
        self.register_buffer("cos", angles.cos().to(torch.bfloat16))
        self.register_buffer("sin", angles.sin().to(torch.bfloat16))

    def forward(self, token, at):
        mask = (self.places <= at).view(1, 1, 1, CONTEXT)
        x, turn = self.words(token).view(1, 1, WIDTH), (self.cos[at], self.sin[at])
        for block in self.blocks:
            x = block(x, at, turn, mask)
        return self.head(self.last(x)).view(WORDS).argmax().view(1)


model = Model().eval()
step = torch.compile(model, mode="reduce-overhead", fullgraph=True)


def answer_of(prompt, count):
    """Greedy: one token after the other, first those of the prompt."""
    with torch.inference_mode():
        tokens = list(prompt)
        for n in range(len(prompt) + count - 1):
            token = step(torch.tensor([tokens[n]]), torch.tensor([n]))
            if n + 1 == len(tokens):
                tokens.append(int(token))
        return tokens[len(prompt):]


def answer(path):
    if path == "/canary":
        return " ".join(map(str, answer_of([1, 2, 3], 32)))
    if path == "/rate":
        torch.cuda.synchronize()
        start = time.time()
        answer_of([5], 256)
        return f"{256 / (time.time() - start):.1f} tokens/s"
    return "ok"


answer("/canary")
# What has compiled holds the GPU open, and has nothing more to do.
torch._inductor.async_compile.shutdown_compile_workers()
print(f"serving, {time.time() - began:.1f} s after its start", flush=True)
serve(port, answer)
