// The kernels of the boot gate. `scripts/build-kernels` makes PTX of them, which the driver of any host compiles for its GPU.
//
// All results are exact: no result depends on the order in which threads run, so that two runs, and two GPUs of one model,
// give the same bits.

typedef unsigned int u32;
typedef unsigned long long u64;

// ------------------------------------------------------------------------------------------------ memory patterns

// What the 16 bytes at `index` hold. kind 0: `seed` four times; 1: the index and its complement, so that every place holds
// something else; 2: the complement of that; 3: pseudo-random words.
__device__ __forceinline__ uint4 pattern(u32 kind, u32 seed, u64 index) {
  u32 low = (u32)index, high = (u32)(index >> 32);
  if (kind == 0) return make_uint4(seed, seed, seed, seed);
  if (kind == 1) return make_uint4(low, high, ~low, ~high);
  if (kind == 2) return make_uint4(~low, ~high, low, high);
  u32 x = (low ^ (high * 0x85ebca6bu) ^ seed) * 0x9e3779b1u;
  x ^= x >> 15;
  x *= 0x85ebca77u;
  return make_uint4(x, x * 0xc2b2ae3du, x * 0x27d4eb2fu, x * 0x165667b1u);
}

extern "C" __global__ void fill(uint4* memory, u64 length, u64 first, u32 kind, u32 seed) {
  u64 step = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < length; i += step) {
    __stcs(memory + i, pattern(kind, seed, first + i));
  }
}

// found[0]: words of 32 bits that differ; found[1]: least index of 16 bytes that do; found[2]: bits that differed anywhere.
extern "C" __global__ void verify(const uint4* memory, u64 length, u64 first, u32 kind, u32 seed, u64* found) {
  u64 step = (u64)gridDim.x * blockDim.x;
  u64 start = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  for (u64 i = start; i < length; i += 4 * step) {
    uint4 is[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      u64 at = i + k * step;
      is[k] = at < length ? __ldcs(memory + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
      u64 at = i + k * step;
      if (at >= length) continue;
      uint4 be = pattern(kind, seed, first + at);
      u32 x = is[k].x ^ be.x, y = is[k].y ^ be.y, z = is[k].z ^ be.z, w = is[k].w ^ be.w;
      if (x | y | z | w) {
        atomicAdd(found, (u64)((x != 0) + (y != 0) + (z != 0) + (w != 0)));
        atomicMin(found + 1, first + at);
        atomicOr(found + 2, (u64)(x | y | z | w));
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------ bandwidth

extern "C" __global__ void read(const uint4* memory, u64 length, u32* sink) {
  u64 step = (u64)gridDim.x * blockDim.x;
  u32 sum = 0;
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * step < length; i += 4 * step) {
    uint4 a = __ldcs(memory + i), b = __ldcs(memory + i + step);
    uint4 c = __ldcs(memory + i + 2 * step), d = __ldcs(memory + i + 3 * step);
    sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; i < length; i += step) {
    uint4 a = __ldcs(memory + i);
    sum ^= a.x ^ a.y ^ a.z ^ a.w;
  }
  // Never true of what `fill` wrote; keeps the compiler from leaving the reads out.
  if (sum == 0x5eed5eedu) *sink = sum;
}

extern "C" __global__ void copy(const uint4* from, uint4* to, u64 length) {
  u64 step = (u64)gridDim.x * blockDim.x;
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 7 * step < length; i += 8 * step) {
    uint4 held[8];
#pragma unroll
    for (int k = 0; k < 8; k++) held[k] = __ldcs(from + i + k * step);
#pragma unroll
    for (int k = 0; k < 8; k++) __stcs(to + i + k * step, held[k]);
  }
  for (; i < length; i += step) __stcs(to + i, __ldcs(from + i));
}

// ------------------------------------------------------------------------------------------------ products

__device__ __forceinline__ u64 mixed(u64 x) {
  // SplitMix64 (Steele, Lea, Flood 2014).
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// A sum does not depend on the order: the digest of a result is the same whichever thread comes first.
__device__ __forceinline__ void add_digest(u64 first, u64 second, u64* digest) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    first += __shfl_xor_sync(0xffffffffu, first, offset);
    second += __shfl_xor_sync(0xffffffffu, second, offset);
  }
  if ((threadIdx.x & 31) == 0) {
    atomicAdd(digest, first);
    atomicAdd(digest + 1, second);
  }
}

// Half-precision numbers of either sign between 1/4 and 2, every bit of their mantissas in use.
extern "C" __global__ void operands(u32* halves, u64 length, u32 seed) {
  u64 step = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < length; i += step) {
    u64 r = mixed(i + ((u64)seed << 40) + 0x9e3779b97f4a7c15ull);
    u32 word = 0;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      u32 bits = (u32)(r >> (32 * k));
      u32 exponent = 13 + (bits >> 20) % 3;
      word |= ((bits & 0x8000u) | (exponent << 10) | (bits & 0x3ffu)) << (16 * k);
    }
    halves[i] = word;
  }
}

#define TILE_M 128
#define TILE_N 256
#define DEPTH 32
#if __CUDA_ARCH__ >= 800
#define STAGES 4
#else
#define STAGES 1
#endif
#define A_BYTES (TILE_M * DEPTH * 2)
#define STAGE_BYTES ((TILE_M + TILE_N) * DEPTH * 2)

__device__ __forceinline__ u32 shared_at(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Where 8 halves of a row lie: chunks are swapped by row, so that neither the copies nor ldmatrix meet in one bank.
__device__ __forceinline__ u32 place(u32 row, u32 chunk) { return row * (DEPTH * 2) + ((chunk ^ ((row >> 1) & 3)) << 4); }

// Copies `rows` rows of 4 chunks to shared memory, by 256 threads.
template <int rows>
__device__ __forceinline__ void fetch(const u32* from, u32 row0, u32 depth0, u32 k, u32 to) {
#pragma unroll
  for (int n = 0; n < rows * 4 / 256; n++) {
    u32 c = threadIdx.x + n * 256, row = c >> 2, chunk = c & 3;
    const u32* source = from + ((u64)(row0 + row) * k + depth0 + chunk * 8) / 2;
    u32 there = to + place(row, chunk);
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(there), "l"(source));
#else
    uint4 v = *(const uint4*)source;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(there), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
#endif
  }
}

__device__ __forceinline__ void load4(u32 r[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}

__device__ __forceinline__ void multiply(float c[4], const u32 a[4], const u32 b[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// C = A B, of which only a digest is kept. A is m x k, B is given as its transpose, n x k, both by rows in half precision;
// sums are in single precision and in a fixed order. One block of 256 threads makes 128 x 256 of C, each warp 64 x 64 of it;
// `flip` is the number of one element of C whose lowest bit is turned, as a test of the test; beyond m n it is none.
extern "C" __global__ void __launch_bounds__(256, 1)
product(const u32* a, const u32* b, u32 m, u32 n, u32 k, u64* digest, u64 flip) {
  extern __shared__ __align__(128) unsigned char memory[];
  u32 base = shared_at(memory);
  u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  u32 warp_row = (warp >> 2) * 64, warp_column = (warp & 3) * 64;
  // Blocks that run together share rows and columns: bands of eight tiles.
  u32 tiles_m = m / TILE_M, band = blockIdx.x / (8 * (n / TILE_N)), in_band = blockIdx.x % (8 * (n / TILE_N));
  u32 height = tiles_m - band * 8 < 8 ? tiles_m - band * 8 : 8;
  u32 row0 = (band * 8 + in_band % height) * TILE_M, column0 = (in_band / height) * TILE_N;
  float sums[4][8][4] = {};
  u32 steps = k / DEPTH;
#if __CUDA_ARCH__ >= 800
  for (u32 s = 0; s < STAGES - 1; s++) {
    if (s < steps) {
      fetch<TILE_M>(a, row0, s * DEPTH, k, base + s * STAGE_BYTES);
      fetch<TILE_N>(b, column0, s * DEPTH, k, base + s * STAGE_BYTES + A_BYTES);
    }
    asm volatile("cp.async.commit_group;");
  }
#endif
  for (u32 step = 0; step < steps; step++) {
    u32 stage = step % STAGES;
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    __syncthreads();
    u32 next = step + STAGES - 1;
    if (next < steps) {
      fetch<TILE_M>(a, row0, next * DEPTH, k, base + (next % STAGES) * STAGE_BYTES);
      fetch<TILE_N>(b, column0, next * DEPTH, k, base + (next % STAGES) * STAGE_BYTES + A_BYTES);
    }
    asm volatile("cp.async.commit_group;");
#else
    __syncthreads();
    fetch<TILE_M>(a, row0, step * DEPTH, k, base);
    fetch<TILE_N>(b, column0, step * DEPTH, k, base + A_BYTES);
    __syncthreads();
#endif
    u32 at_a = base + stage * STAGE_BYTES, at_b = at_a + A_BYTES;
#pragma unroll
    for (u32 part = 0; part < DEPTH / 16; part++) {
      u32 fa[4][4], fb[8][2];
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        load4(fa[i], at_a + place(warp_row + i * 16 + (lane & 15), part * 2 + (lane >> 4)));
      }
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        u32 r[4];
        load4(r, at_b + place(warp_column + j * 16 + (lane & 7) + ((lane >> 4) << 3), part * 2 + ((lane >> 3) & 1)));
        fb[2 * j][0] = r[0], fb[2 * j][1] = r[1], fb[2 * j + 1][0] = r[2], fb[2 * j + 1][1] = r[3];
      }
#pragma unroll
      for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 j = 0; j < 8; j++) multiply(sums[i][j], fa[i], fb[j]);
    }
  }
  u64 first = 0, second = 0;
#pragma unroll
  for (u32 i = 0; i < 4; i++)
#pragma unroll
    for (u32 j = 0; j < 8; j++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        u32 row = row0 + warp_row + i * 16 + (lane >> 2) + (e >> 1) * 8;
        u32 column = column0 + warp_column + j * 8 + (lane & 3) * 2 + (e & 1);
        u64 number = (u64)row * n + column;
        u32 bits = __float_as_uint(sums[i][j][e]) ^ (number == flip ? 1u : 0u);
        u64 h = mixed(number * 0x9e3779b97f4a7c15ull + bits);
        first += h;
        second += mixed(h + 0xd1b54a32d192ed03ull);
      }
  add_digest(first, second, digest);
}

// Eight chains of multiply-adds in each thread, each of them the map x*x - c, which stays bounded and never settles, so that
// all bits keep turning. The caller counts threads x rounds x 16 operations.
extern "C" __global__ void burn(u32 rounds, u64* digest) {
  u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = (float)((mixed(thread * 8ull + i) >> 40) & 0xffff) * (1.0f / 65536.0f);
  for (u32 r = 0; r < rounds; r++) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = __fmaf_rn(x[i], x[i], -1.9f + 0.0078125f * i);
  }
  u64 first = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) first += mixed(thread * 8ull + i + ((u64)__float_as_uint(x[i]) << 32));
  add_digest(first, mixed(first), digest);
}

// Writes a word: whether anything runs at all.
extern "C" __global__ void answer(u32* word, u32 value) { *word = value; }
