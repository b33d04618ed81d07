#include "check.h"

#ifndef PRUNE_BENCH_VERSION
#error "CMake passes PRUNE_BENCH_VERSION"
#endif

namespace prune_bench {
namespace {

template <typename... Pointers>
bool odd_floats(Pointers... pointers) noexcept {
  return (misaligned(pointers, 4) || ...);
}

}  // namespace

int32_t check(const prune_bench_obs_sweep_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_obs_sweep_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  // The bound keeps rows * columns and the packed factor far from overflow.
  constexpr int64_t kMostRows = int64_t{1} << 40;
  constexpr int64_t kMostColumns = int64_t{1} << 16;
  if (p.rows < 0 || p.columns < 0 || p.rows > kMostRows || p.columns > kMostColumns) return PRUNE_BENCH_BAD_SIZE;
  if (p.group < 0 || p.keep < 0 || p.keep > p.group) return PRUNE_BENCH_BAD_SELECTION;
  if (p.group > 0 && (p.mask != nullptr || p.columns % p.group != 0)) return PRUNE_BENCH_BAD_SELECTION;
  if (p.levels != 0 && (p.levels < 2 || p.levels > 65536)) return PRUNE_BENCH_BAD_GRID;
  if (p.rows == 0) return PRUNE_BENCH_OK;
  if (p.loss == nullptr || (p.levels != 0 && (p.scale == nullptr || p.zero == nullptr))) {
    return PRUNE_BENCH_NULL_POINTER;
  }
  if (odd_floats(p.loss, p.scale, p.zero)) return PRUNE_BENCH_MISALIGNED;
  if (p.columns == 0) return PRUNE_BENCH_OK;
  const bool missing =
      p.weight == nullptr || p.factor == nullptr || p.values == nullptr || p.errors == nullptr || p.removed == nullptr;
  if (missing) return PRUNE_BENCH_NULL_POINTER;
  return odd_floats(p.weight, p.factor, p.divisor, p.values, p.errors) ? PRUNE_BENCH_MISALIGNED : PRUNE_BENCH_OK;
}

}  // namespace prune_bench

extern "C" {

const char* prune_bench_version(void) { return PRUNE_BENCH_VERSION; }

int32_t prune_bench_abi(void) { return PRUNE_BENCH_ABI; }

const char* prune_bench_message(int32_t status) {
  switch (status) {
    case PRUNE_BENCH_OK:
      return "done";
    case PRUNE_BENCH_BAD_ABI:
      return "the library and its caller were built from different versions: reinstall the package";
    case PRUNE_BENCH_NULL_POINTER:
      return "a pointer that must be set is null";
    case PRUNE_BENCH_BAD_SIZE:
      return "rows and columns must be 0 or more, and columns at most 65536";
    case PRUNE_BENCH_BAD_SELECTION:
      return "keep must lie in 0..group, group must divide the columns, and excludes a mask";
    case PRUNE_BENCH_BAD_GRID:
      return "a grid has 2..65536 levels";
    case PRUNE_BENCH_BAD_THREADS:
      return "threads must be 0 (the default) or more";
    case PRUNE_BENCH_NO_SUCH_ISA:
      return "this processor or build lacks the instruction set asked for";
    case PRUNE_BENCH_OUT_OF_MEMORY:
      return "out of memory";
    case PRUNE_BENCH_TOO_WIDE:
      return "the CUDA kernel takes at most 128 columns";
    case PRUNE_BENCH_LAUNCH_FAILED:
      return "the CUDA kernel could not be launched";
    case PRUNE_BENCH_BAD_STRIDE:
      return "the rows of an output or of a product's input must not overlap";
    case PRUNE_BENCH_MISALIGNED:
      return "a pointer is not aligned to its element";
    case PRUNE_BENCH_BAD_DTYPE:
      return "values are float32, bfloat16, float16, or int8 with scales; packing takes items of 1, 2 or 4 bytes";
    case PRUNE_BENCH_BAD_FORMAT:
      return "bitmap, offsets and values do not belong together";
    default:
      return "unknown status";
  }
}

}  // extern "C"
