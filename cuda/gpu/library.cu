// The CUDA library's C interface: checks and the launch.
#include <cuda_runtime.h>

#define PRUNE_BENCH_DYNAMIC_SHARED(type, name) extern __shared__ type name[]

#include "check.h"
#include "obs_sweep_kernel.h"

namespace prune_bench {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 4;  // enough to hide latency; more would only copy the factor again

template <int kSlots>
int32_t launch(const prune_bench_obs_sweep_params& p, cudaStream_t stream) {
  const unsigned shared = gpu::shared_bytes(p.columns);
  // Beyond 48 KiB a kernel has to ask.
  if (cudaFuncSetAttribute(gpu::obs_sweep_kernel<kSlots>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared)) != cudaSuccess) {
    cudaGetLastError();
    return PRUNE_BENCH_LAUNCH_FAILED;
  }
  int device = 0;
  int processors = 1;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return PRUNE_BENCH_LAUNCH_FAILED;
  }
  const int64_t warps = kThreads / gpu::kWarp;
  const int64_t needed = (p.rows + warps - 1) / warps;
  const int64_t most = static_cast<int64_t>(processors) * kBlocksPerProcessor;
  const unsigned blocks = static_cast<unsigned>(needed < most ? needed : most);
  gpu::obs_sweep_kernel<kSlots><<<blocks, kThreads, shared, stream>>>(p);
  return cudaGetLastError() == cudaSuccess ? PRUNE_BENCH_OK : PRUNE_BENCH_LAUNCH_FAILED;
}

}  // namespace
}  // namespace prune_bench

extern "C" int32_t prune_bench_cuda_obs_sweep(const prune_bench_obs_sweep_params* params, void* stream_pointer) {
  namespace gpu = prune_bench::gpu;
  if (const int32_t status = prune_bench::check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_obs_sweep_params& p = *params;
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.rows == 0) return PRUNE_BENCH_OK;
  if (p.columns == 0) {
    const auto bytes = static_cast<size_t>(p.rows) * sizeof(float);
    return cudaMemsetAsync(p.loss, 0, bytes, stream) == cudaSuccess ? PRUNE_BENCH_OK : PRUNE_BENCH_LAUNCH_FAILED;
  }
  if (p.columns > gpu::kMostColumns) return PRUNE_BENCH_TOO_WIDE;
  switch ((p.columns + gpu::kWarp - 1) / gpu::kWarp) {
    case 1:
      return prune_bench::launch<1>(p, stream);
    case 2:
      return prune_bench::launch<2>(p, stream);
    case 3:
      return prune_bench::launch<3>(p, stream);
    default:
      return prune_bench::launch<4>(p, stream);
  }
}
