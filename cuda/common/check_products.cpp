#include "check.h"

namespace prune_bench {
namespace {

// The bounds keep every product of sizes and strides below far from overflow.
constexpr int64_t kMost = int64_t{1} << 30;
constexpr int64_t kMostWeights = int64_t{1} << 44;

bool bad_size(int64_t rows, int64_t columns) noexcept {
  return rows < 0 || columns < 0 || rows > kMost || columns > kMost || rows * (columns / 64 + 1) > kMostWeights / 64;
}

bool bad_tokens(int64_t tokens, int64_t rows, int64_t columns) noexcept {
  return tokens < 0 || tokens > kMost || tokens * (rows + columns + 64) > kMostWeights;
}

bool bad_stride(int64_t count, int64_t stride, int64_t width) noexcept {
  return count > 1 && (stride < width || stride > kMostWeights);
}

// Input and output of a product of `rows` x `columns` weights; something is computed.
template <typename Params>
int32_t check_ends(const Params& p, int64_t rows, int64_t columns) noexcept {
  if (p.y == nullptr || (columns > 0 && p.x == nullptr)) return PRUNE_BENCH_NULL_POINTER;
  if (misaligned(p.x, 4) || misaligned(p.y, 4) || misaligned(p.bias, 4)) return PRUNE_BENCH_MISALIGNED;
  const bool bad = bad_stride(p.tokens, p.x_row_stride, columns) || bad_stride(p.tokens, p.y_row_stride, rows);
  return bad ? PRUNE_BENCH_BAD_STRIDE : PRUNE_BENCH_OK;
}

}  // namespace

int64_t itemsize(int32_t dtype) noexcept {
  switch (dtype) {
    case PRUNE_BENCH_FLOAT32:
      return 4;
    case PRUNE_BENCH_BFLOAT16:
    case PRUNE_BENCH_FLOAT16:
      return 2;
    case PRUNE_BENCH_INT8:
      return 1;
    default:
      return 0;
  }
}

int32_t check(const prune_bench_bitmap& w) noexcept {
  if (itemsize(w.dtype) == 0) return PRUNE_BENCH_BAD_DTYPE;
  if (bad_size(w.rows, w.columns)) return PRUNE_BENCH_BAD_SIZE;
  if (w.nonzeros < 0 || w.nonzeros > w.rows * w.columns) return PRUNE_BENCH_BAD_FORMAT;
  if (w.group < 0 || w.keep < 0 || w.keep > w.group) return PRUNE_BENCH_BAD_SELECTION;
  if (w.group > 0) {
    if (w.columns % w.group != 0) return PRUNE_BENCH_BAD_SELECTION;
    if (w.nonzeros != w.rows * (w.columns / w.group * w.keep)) return PRUNE_BENCH_BAD_FORMAT;
  }
  if (w.rows > 0 && w.group == 0 && w.offsets == nullptr) return PRUNE_BENCH_NULL_POINTER;
  if (w.rows > 0 && w.columns > 0 && w.bitmap == nullptr) return PRUNE_BENCH_NULL_POINTER;
  if (w.nonzeros > 0 && w.values == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const bool bad = misaligned(w.bitmap, 8) || misaligned(w.offsets, 8) || misaligned(w.values, itemsize(w.dtype)) ||
                   misaligned(w.scales, 4);
  return bad ? PRUNE_BENCH_MISALIGNED : PRUNE_BENCH_OK;
}

int32_t check(const prune_bench_bitmap_matmul_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_bitmap_matmul_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (const int32_t status = check(p.weight); status != PRUNE_BENCH_OK) return status;
  if (bad_tokens(p.tokens, p.weight.rows, p.weight.columns)) return PRUNE_BENCH_BAD_SIZE;
  if (p.tokens == 0 || p.weight.rows == 0) return PRUNE_BENCH_OK;
  if ((p.weight.dtype == PRUNE_BENCH_INT8) != (p.weight.scales != nullptr)) return PRUNE_BENCH_BAD_DTYPE;
  return check_ends(p, p.weight.rows, p.weight.columns);
}

int32_t check(const prune_bench_dense_matmul_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_dense_matmul_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (itemsize(p.dtype) == 0) return PRUNE_BENCH_BAD_DTYPE;
  if (bad_size(p.rows, p.columns) || bad_tokens(p.tokens, p.rows, p.columns)) return PRUNE_BENCH_BAD_SIZE;
  if (p.tokens == 0 || p.rows == 0) return PRUNE_BENCH_OK;
  if ((p.dtype == PRUNE_BENCH_INT8) != (p.scales != nullptr)) return PRUNE_BENCH_BAD_DTYPE;
  if (p.columns > 0 && p.weight == nullptr) return PRUNE_BENCH_NULL_POINTER;
  if (misaligned(p.weight, itemsize(p.dtype)) || misaligned(p.scales, 4)) return PRUNE_BENCH_MISALIGNED;
  if (bad_stride(p.rows, p.weight_row_stride, p.columns)) return PRUNE_BENCH_BAD_STRIDE;
  return check_ends(p, p.rows, p.columns);
}

int32_t check(const prune_bench_bitmap_pack_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_bitmap_pack_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (p.itemsize != 1 && p.itemsize != 2 && p.itemsize != 4) return PRUNE_BENCH_BAD_DTYPE;
  if (bad_size(p.rows, p.columns)) return PRUNE_BENCH_BAD_SIZE;
  if (p.threads < 0) return PRUNE_BENCH_BAD_THREADS;
  if (p.offsets == nullptr) return PRUNE_BENCH_NULL_POINTER;
  if (misaligned(p.bitmap, 8) || misaligned(p.offsets, 8)) return PRUNE_BENCH_MISALIGNED;
  if (p.rows == 0 || p.columns == 0) return PRUNE_BENCH_OK;
  if (p.bitmap == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const bool bad = misaligned(p.weight, p.itemsize) || misaligned(p.values, p.itemsize);
  return bad ? PRUNE_BENCH_MISALIGNED : PRUNE_BENCH_OK;
}

int32_t check(const prune_bench_bitmap_unpack_params* params) noexcept {
  if (params == nullptr) return PRUNE_BENCH_NULL_POINTER;
  const prune_bench_bitmap_unpack_params& p = *params;
  if (p.abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (p.threads < 0) return PRUNE_BENCH_BAD_THREADS;
  if (const int32_t status = check(p.weight); status != PRUNE_BENCH_OK) return status;
  if (p.weight.rows == 0 || p.weight.columns == 0) return PRUNE_BENCH_OK;
  if (p.dense == nullptr) return PRUNE_BENCH_NULL_POINTER;
  if (misaligned(p.dense, itemsize(p.weight.dtype))) return PRUNE_BENCH_MISALIGNED;
  if (bad_stride(p.weight.rows, p.dense_row_stride, p.weight.columns)) return PRUNE_BENCH_BAD_STRIDE;
  return PRUNE_BENCH_OK;
}

}  // namespace prune_bench
