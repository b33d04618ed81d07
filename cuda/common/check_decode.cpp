#include <initializer_list>

#include "check.h"

namespace prune_bench {
namespace {

// The bounds keep every product of sizes and strides below far from overflow.
constexpr int64_t kMostWidth = int64_t{1} << 24;
constexpr int64_t kMostHeads = int64_t{1} << 16;

template <typename... Pointers>
bool odd_floats(Pointers... pointers) noexcept {
  return (misaligned(pointers, 4) || ...);
}

bool outside(int64_t size, int64_t low, int64_t high) noexcept { return size < low || size > high; }

}  // namespace

int32_t check(const prune_bench_add_norm_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_add_norm_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (outside(p.width, 1, kMostWidth) || outside(p.divisor, 1, kMostWidth)) return PRUNE_BENCH_BAD_SIZE;
  if (p.hidden == nullptr) return PRUNE_BENCH_NULL_POINTER;
  return odd_floats(p.hidden, p.update, p.weight, p.bias, p.out) ? PRUNE_BENCH_MISALIGNED : PRUNE_BENCH_OK;
}

int32_t check(const prune_bench_attend_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_attend_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (p.dtype == PRUNE_BENCH_INT8 || itemsize(p.dtype) == 0) return PRUNE_BENCH_BAD_DTYPE;
  if (outside(p.kv_heads, 1, kMostHeads) || outside(p.heads, 1, kMostHeads) || p.heads % p.kv_heads != 0 ||
      outside(p.head_dim, 1, kMostHeads) || outside(p.capacity, 1, kMostWidth)) {
    return PRUNE_BENCH_BAD_SIZE;
  }
  if (p.place == nullptr || p.query == nullptr || p.key == nullptr || p.value == nullptr || p.keys == nullptr ||
      p.values == nullptr || p.scratch == nullptr || p.out == nullptr) {
    return PRUNE_BENCH_NULL_POINTER;
  }
  for (const int64_t stride : {p.query_stride, p.key_stride, p.value_stride}) {
    if (outside(stride, p.head_dim, kMostWidth)) return PRUNE_BENCH_BAD_STRIDE;
  }
  if (misaligned(p.place, 8)) return PRUNE_BENCH_MISALIGNED;
  const prune_bench_decode_place& at = *p.place;
  if (outside(at.position, 0, p.capacity - 1)) return PRUNE_BENCH_BAD_SIZE;
  if ((at.cos == nullptr) != (at.sin == nullptr)) return PRUNE_BENCH_NULL_POINTER;
  if (at.cos != nullptr && p.head_dim % 2 != 0) return PRUNE_BENCH_BAD_SIZE;
  if (at.bias != nullptr && outside(at.bias_stride, at.position + 1, int64_t{1} << 40)) return PRUNE_BENCH_BAD_STRIDE;
  const bool bad = odd_floats(p.query, p.key, p.value, p.scratch, p.out, at.cos, at.sin, at.bias) ||
                   misaligned(p.keys, itemsize(p.dtype)) || misaligned(p.values, itemsize(p.dtype));
  return bad ? PRUNE_BENCH_MISALIGNED : PRUNE_BENCH_OK;
}

int32_t check(const prune_bench_activate_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_activate_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (outside(p.kind, PRUNE_BENCH_RELU, PRUNE_BENCH_GELU)) return PRUNE_BENCH_BAD_FORMAT;
  if (outside(p.width, 1, kMostWidth)) return PRUNE_BENCH_BAD_SIZE;
  if (p.in == nullptr || p.out == nullptr) return PRUNE_BENCH_NULL_POINTER;
  return odd_floats(p.in, p.out) ? PRUNE_BENCH_MISALIGNED : PRUNE_BENCH_OK;
}

}  // namespace prune_bench
