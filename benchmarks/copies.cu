// Copies by the plain runtime API, to compare the boot gate's own with: pinned host memory, and within the device. With the
// word "hold" it holds memory instead.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <cuda_runtime.h>
#include <unistd.h>

static void must(cudaError_t code) {
  if (code != cudaSuccess) {
    fprintf(stderr, "%s\n", cudaGetErrorString(code));
    exit(1);
  }
}

int main(int count, char** words) {
  if (count > 1 && std::string(words[1]) == "hold") {
    // Holds memory until it is killed, as a workload would.
    void* held;
    must(cudaMalloc(&held, size_t(40) << 30));
    puts("holds");
    fflush(stdout);
    for (;;) pause();
  }
  const size_t copy = size_t(1) << 30, within = size_t(2) << 30;
  void *host, *there, *other;
  must(cudaMallocHost(&host, copy));
  must(cudaMalloc(&there, within));
  must(cudaMalloc(&other, within));
  cudaEvent_t start, end;
  must(cudaEventCreate(&start));
  must(cudaEventCreate(&end));
  auto rate = [&](void* to, void* from, size_t bytes, size_t counted, cudaMemcpyKind kind) {
    float times[9];
    for (float& ms : times) {
      must(cudaEventRecord(start));
      must(cudaMemcpyAsync(to, from, bytes, kind));
      must(cudaEventRecord(end));
      must(cudaEventSynchronize(end));
      must(cudaEventElapsedTime(&ms, start, end));
    }
    std::sort(times, times + 9);
    return counted / (times[4] * 1e-3) / 1e9;
  };
  printf("{\"h2d_gbps\": %.2f, ", rate(there, host, copy, copy, cudaMemcpyHostToDevice));
  printf("\"d2h_gbps\": %.2f, ", rate(host, there, copy, copy, cudaMemcpyDeviceToHost));
  printf("\"d2d_gbps\": %.2f}\n", rate(other, there, within, 2 * within, cudaMemcpyDeviceToDevice));
}
