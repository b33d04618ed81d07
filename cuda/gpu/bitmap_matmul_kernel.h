// The product of a bitmap matrix with few tokens for GPUs: one warp makes one output row of up to kTokens tokens, and
// every stored value is read once. Compiled by nvcc, and on the host through cuda/emulate.
//
//     32 words of a row       lane l reads word l: 2048 columns of bitmap in one load of 256 bytes
//     a scan over the warp    how many values the words before hold, so that no load waits for another's address
//     word by word            lane l owns columns l and l + 32; its value's place is a popcount of the bits below
//
// Neighbouring lanes read neighbouring values and neighbouring columns of x. Sums are float32, one a lane and token,
// folded at the end: the order depends on the columns alone, so any launch gives the same bits.
#pragma once

#include "prune_bench.h"

namespace prune_bench {
namespace gpu {

constexpr int kMostTokens = 16;  // a sum a token in registers; more tokens are for a dense product
constexpr int kWordsAtOnce = 32;
constexpr int kWordBits = 64;

// How a value is stored, and what it means.
struct Float32 {
  static constexpr bool kScaled = false;
  using Stored = float;
  __device__ static float wide(float value) { return value; }
};
struct BFloat16 {
  static constexpr bool kScaled = false;
  using Stored = uint16_t;
  __device__ static float wide(uint16_t bits) { return __int_as_float(static_cast<int32_t>(bits) << 16); }
};
struct Float16 {
  static constexpr bool kScaled = false;
  using Stored = uint16_t;
  __device__ static float wide(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
};
struct Int8 {
  static constexpr bool kScaled = true;
  using Stored = int8_t;
  __device__ static float wide(int8_t value) { return static_cast<float>(value); }
};

// Where a row's values lie; nothing, and not `good`, where the offsets leave the matrix.
struct Range {
  int64_t begin, end;
  bool good;
};

__device__ inline Range range_of(const prune_bench_bitmap& w, int64_t row) {
  if (w.group > 0) {
    const int64_t each = w.columns / w.group * w.keep;
    return {row * each, (row + 1) * each, true};
  }
  const int64_t begin = w.offsets[row];
  const int64_t end = w.offsets[row + 1];
  const bool good = begin >= 0 && end >= begin && end <= w.nonzeros;
  return {good ? begin : 0, good ? end : 0, good};
}

// Sum of `count` over this lane and those before it.
__device__ inline int scan(int count, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, count, static_cast<unsigned>(step));
    if (lane >= step) count += before;
  }
  return count;
}

template <typename Value, int kTokens>
__device__ inline void add(const prune_bench_bitmap_matmul_params& p, int64_t first, int live, int64_t column,
                           int64_t at, float (&sum)[kTokens]) {
  const float value = Value::wide(static_cast<const typename Value::Stored*>(p.weight.values)[at]);
  const float* x = p.x + first * p.x_row_stride + column;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t < live) sum[t] = __fmaf_rn(value, x[t * p.x_row_stride], sum[t]);
  }
}

// Output `row` of tokens first .. first + live - 1. NaN where the row's bitmap and values do not belong together.
template <typename Value, int kTokens>
__device__ inline void multiply_row(const prune_bench_bitmap_matmul_params& p, int64_t row, int64_t first, int live,
                                    int lane) {
  const prune_bench_bitmap& w = p.weight;
  const int64_t words = (w.columns + kWordBits - 1) / kWordBits;
  const uint32_t below = (uint32_t{1} << lane) - 1;
  const Range range = range_of(w, row);
  bool bad = !range.good;
  float sum[kTokens] = {};
  int64_t at = range.begin;
  for (int64_t chunk = 0; chunk < words; chunk += kWordsAtOnce) {
    const int64_t word = chunk + lane;
    unsigned long long mine = word < words ? w.bitmap[row * words + word] : 0;
    if (word == words - 1 && w.columns % kWordBits != 0 && mine >> w.columns % kWordBits != 0) {
      bad = true;  // columns that are not there: neither counted nor read
      mine &= (1ull << w.columns % kWordBits) - 1;
    }
    const int until = scan(__popcll(mine), lane);
    const int before = until - __popcll(mine);
    const int here = static_cast<int>(words - chunk < kWordsAtOnce ? words - chunk : kWordsAtOnce);
#pragma unroll 4
    for (int k = 0; k < here; ++k) {
      const unsigned long long bits = __shfl_sync(0xffffffffu, mine, k);
      const int64_t start = at + __shfl_sync(0xffffffffu, before, k);
      const uint32_t low = static_cast<uint32_t>(bits);
      const uint32_t high = static_cast<uint32_t>(bits >> 32);
      const int64_t column = (chunk + k) * kWordBits + lane;
      const int64_t near = start + __popc(low & below);
      const int64_t far = start + __popc(low) + __popc(high & below);
      if ((low >> lane & 1u) != 0 && near < range.end) add<Value, kTokens>(p, first, live, column, near, sum);
      if ((high >> lane & 1u) != 0 && far < range.end) add<Value, kTokens>(p, first, live, column + 32, far, sum);
    }
    at += __shfl_sync(0xffffffffu, until, 31);
  }
  bad = __any_sync(0xffffffffu, bad || at != range.end);
  const float scale = Value::kScaled ? w.scales[row] : 1.0f;
  const float bias = p.bias != nullptr ? p.bias[row] : 0.0f;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum[t] = __fadd_rn(sum[t], __shfl_xor_sync(0xffffffffu, sum[t], step));
    if (t < live && lane == t) {
      const float y = __fadd_rn(__fmul_rn(sum[t], scale), bias);
      p.y[(first + t) * p.y_row_stride + row] = bad ? __int_as_float(0x7fc00000) : y;
    }
  }
}

// Warps take rows in turn. blockDim.x is a multiple of 32.
template <typename Value, int kTokens>
__global__ void bitmap_matmul_kernel(prune_bench_bitmap_matmul_params p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = blockDim.x / 32;
  for (int64_t row = blockIdx.x * warps + threadIdx.x / 32; row < p.weight.rows; row += gridDim.x * warps) {
    for (int64_t first = 0; first < p.tokens; first += kTokens) {
      const int live = static_cast<int>(p.tokens - first < kTokens ? p.tokens - first : kTokens);
      multiply_row<Value, kTokens>(p, row, first, live, lane);
    }
  }
}

}  // namespace gpu
}  // namespace prune_bench
