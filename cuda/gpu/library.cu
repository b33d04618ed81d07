// The CUDA library's C interface: checks and the launch.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define PRUNE_BENCH_DYNAMIC_SHARED(type, name) extern __shared__ type name[]

#include "bitmap_matmul_kernel.h"
#include "check.h"
#include "obs_sweep_kernel.h"

namespace prune_bench {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 4;  // enough to hide latency; more would only copy the factor again

// Blocks of kThreads that give every row a warp, as far as the device has room; 0 where it cannot be asked.
int64_t blocks_for(int64_t rows) {
  int device = 0;
  int processors = 1;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 0;
  }
  const int64_t warps = kThreads / gpu::kWarp;
  const int64_t needed = (rows + warps - 1) / warps;
  const int64_t most = static_cast<int64_t>(processors) * kBlocksPerProcessor;
  return needed < most ? needed : most;
}

template <int kSlots>
int32_t launch(const prune_bench_obs_sweep_params& p, cudaStream_t stream) {
  const unsigned shared = gpu::shared_bytes(p.columns);
  // Beyond 48 KiB a kernel has to ask.
  if (cudaFuncSetAttribute(gpu::obs_sweep_kernel<kSlots>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared)) != cudaSuccess) {
    cudaGetLastError();
    return PRUNE_BENCH_LAUNCH_FAILED;
  }
  const int64_t blocks = blocks_for(p.rows);
  if (blocks == 0) return PRUNE_BENCH_LAUNCH_FAILED;
  gpu::obs_sweep_kernel<kSlots><<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(p);
  return cudaGetLastError() == cudaSuccess ? PRUNE_BENCH_OK : PRUNE_BENCH_LAUNCH_FAILED;
}

template <typename Value>
int32_t multiply(const prune_bench_bitmap_matmul_params& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(blocks_for(p.weight.rows));
  if (blocks == 0) return PRUNE_BENCH_LAUNCH_FAILED;
  if (p.tokens == 1) {
    gpu::bitmap_matmul_kernel<Value, 1><<<blocks, kThreads, 0, stream>>>(p);
  } else if (p.tokens <= 4) {
    gpu::bitmap_matmul_kernel<Value, 4><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    gpu::bitmap_matmul_kernel<Value, gpu::kMostTokens><<<blocks, kThreads, 0, stream>>>(p);
  }
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

extern "C" int32_t prune_bench_cuda_bitmap_matmul(const prune_bench_bitmap_matmul_params* params,
                                                  void* stream_pointer) {
  namespace gpu = prune_bench::gpu;
  if (const int32_t status = prune_bench::check(params); status != PRUNE_BENCH_OK) return status;
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (params->tokens == 0 || params->weight.rows == 0) return PRUNE_BENCH_OK;
  switch (params->weight.dtype) {
    case PRUNE_BENCH_FLOAT32:
      return prune_bench::multiply<gpu::Float32>(*params, stream);
    case PRUNE_BENCH_BFLOAT16:
      return prune_bench::multiply<gpu::BFloat16>(*params, stream);
    case PRUNE_BENCH_FLOAT16:
      return prune_bench::multiply<gpu::Float16>(*params, stream);
    default:
      return prune_bench::multiply<gpu::Int8>(*params, stream);
  }
}
