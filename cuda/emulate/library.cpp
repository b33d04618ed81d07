// The CUDA library's C interface over the emulation, so that tests call the very kernel on host memory.
// clang-format off: the kernels below are written in the language that the first header gives
#include "cuda_on_host.h"
#include "bitmap_matmul_kernel.h"
#include "check.h"
#include "obs_sweep_kernel.h"
// clang-format on

extern "C" int32_t prune_bench_cuda_obs_sweep(const prune_bench_obs_sweep_params* params, void*) {
  namespace gpu = prune_bench::gpu;
  if (const int32_t status = prune_bench::check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_obs_sweep_params& p = *params;
  if (p.rows == 0) return PRUNE_BENCH_OK;
  if (p.columns > gpu::kMostColumns) return PRUNE_BENCH_TOO_WIDE;
  if (p.columns == 0) {
    for (int64_t row = 0; row < p.rows; ++row) p.loss[row] = 0.0f;
    return PRUNE_BENCH_OK;
  }
  // Two warps a block and at most two blocks: rows are shared out, and some warps take several in turn.
  const unsigned threads = 2 * gpu::kWarp;
  const unsigned blocks = p.rows > 2 ? 2 : 1;
  const unsigned shared = gpu::shared_bytes(p.columns);
  switch ((p.columns + gpu::kWarp - 1) / gpu::kWarp) {
    case 1:
      emulate::launch(blocks, threads, shared, [&] { gpu::obs_sweep_kernel<1>(p); });
      break;
    case 2:
      emulate::launch(blocks, threads, shared, [&] { gpu::obs_sweep_kernel<2>(p); });
      break;
    case 3:
      emulate::launch(blocks, threads, shared, [&] { gpu::obs_sweep_kernel<3>(p); });
      break;
    default:
      emulate::launch(blocks, threads, shared, [&] { gpu::obs_sweep_kernel<4>(p); });
  }
  return PRUNE_BENCH_OK;
}

namespace {

template <typename Value>
void multiply(const prune_bench_bitmap_matmul_params& p) {
  namespace gpu = prune_bench::gpu;
  const unsigned threads = 64;
  const unsigned blocks = p.weight.rows > 2 ? 2 : 1;
  if (p.tokens == 1) {
    emulate::launch(blocks, threads, 0, [&] { gpu::bitmap_matmul_kernel<Value, 1>(p); });
  } else if (p.tokens <= 4) {
    emulate::launch(blocks, threads, 0, [&] { gpu::bitmap_matmul_kernel<Value, 4>(p); });
  } else {
    emulate::launch(blocks, threads, 0, [&] { gpu::bitmap_matmul_kernel<Value, gpu::kMostTokens>(p); });
  }
}

}  // namespace

extern "C" int32_t prune_bench_cuda_bitmap_matmul(const prune_bench_bitmap_matmul_params* params, void*) {
  namespace gpu = prune_bench::gpu;
  if (const int32_t status = prune_bench::check(params); status != PRUNE_BENCH_OK) return status;
  if (params->tokens == 0 || params->weight.rows == 0) return PRUNE_BENCH_OK;
  switch (params->weight.dtype) {
    case PRUNE_BENCH_FLOAT32:
      multiply<gpu::Float32>(*params);
      break;
    case PRUNE_BENCH_BFLOAT16:
      multiply<gpu::BFloat16>(*params);
      break;
    case PRUNE_BENCH_FLOAT16:
      multiply<gpu::Float16>(*params);
      break;
    default:
      multiply<gpu::Int8>(*params);
  }
  return PRUNE_BENCH_OK;
}
