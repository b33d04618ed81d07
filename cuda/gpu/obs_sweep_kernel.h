// The sweep for GPUs: one warp sweeps one row, and all columns of a block in one launch. Compiled by nvcc, and on the
// host through cuda/emulate so that the same body is tested where there is no GPU.
//
//     lane    0        1        ...   31          column of (lane, slot) = 32 slot + lane
//     slot 0  w[0]     w[1]     ...   w[31]       a lane holds columns / 32 weights in registers
//     slot 1  w[32]    w[33]    ...               the factor lies in shared memory, row by row: lanes read neighbours
//
// Column j's weight goes round by one shuffle; every lane then computes the same error (no second exchange) and brings
// its own later columns up to date. The order of operations is that of the CPU kernel, and so are the bits.
#pragma once

#include "prune_bench.h"

namespace prune_bench {
namespace gpu {

constexpr int kWarp = 32;
constexpr int kMostSlots = 4;
constexpr int64_t kMostColumns = kWarp * kMostSlots;
constexpr unsigned kAllLanes = 0xffffffffu;

// Bytes of dynamic shared memory: the factor's block.
inline unsigned shared_bytes(int64_t columns) { return static_cast<unsigned>(columns * columns * sizeof(float)); }

// One row of one warp: what a lane holds of it.
template <int kSlots>
struct RowPart {
  float weight[kSlots];
  float error[kSlots];
  unsigned removed;  // bit `slot`
};

// values[slot] by selection, since an index known only at run time would move the array to local memory.
template <int kSlots>
__device__ inline float pick(const float (&values)[kSlots], int slot) {
  float value = values[0];
#pragma unroll
  for (int s = 1; s < kSlots; ++s) value = s == slot ? values[s] : value;
  return value;
}

// Removal bits of the group that starts at `begin`: the `group - keep` columns that fewer than so many others precede.
template <int kSlots>
__device__ inline unsigned select(const prune_bench_obs_sweep_params& p, const float* factor, int lane, int begin,
                                  const RowPart<kSlots>& row) {
  const int columns = static_cast<int>(p.columns);
  const int end = begin + p.group;
  float score[kSlots];
  int rank[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int column = slot * kWarp + lane;
    float d = 1.0f;
    if (column < columns) d = p.divisor != nullptr ? p.divisor[column] : factor[column * columns + column];
    const float raw = __fdiv_rn(__fmul_rn(row.weight[slot], row.weight[slot]), __fmul_rn(d, d));
    score[slot] = raw == raw ? raw : __int_as_float(0x7f800000);  // a NaN ranks as infinity
    rank[slot] = 0;
  }
  for (int other = begin; other < end; ++other) {
    const float theirs = __shfl_sync(kAllLanes, pick<kSlots>(score, other / kWarp), other % kWarp);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int column = slot * kWarp + lane;
      rank[slot] += (theirs < score[slot]) || (theirs == score[slot] && other < column);
    }
  }
  unsigned removed = row.removed;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int column = slot * kWarp + lane;
    if (column >= begin && column < end && rank[slot] < p.group - p.keep) removed |= 1u << slot;
  }
  return removed;
}

__device__ inline float on_grid(float w, float scale, float zero, float top) {
  float level = __fadd_rn(rintf(__fdiv_rn(w, scale)), zero);
  level = level < 0.0f ? 0.0f : level;  // a NaN fails both comparisons and stays
  level = level > top ? top : level;
  return __fmul_rn(scale, __fsub_rn(level, zero));
}

template <int kSlots>
__device__ inline void load_row(const prune_bench_obs_sweep_params& p, int64_t r, int lane, RowPart<kSlots>& row) {
  row.removed = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int64_t column = slot * kWarp + lane;
    const bool inside = column < p.columns;
    row.weight[slot] = inside ? p.weight[r * p.weight_row_stride + column * p.weight_column_stride] : 0.0f;
    row.error[slot] = 0.0f;
    if (inside && p.mask != nullptr && p.mask[r * p.mask_row_stride + column * p.mask_column_stride] != 0) {
      row.removed |= 1u << slot;
    }
  }
}

template <int kSlots>
__device__ inline void store_row(const prune_bench_obs_sweep_params& p, int64_t r, int lane,
                                 const RowPart<kSlots>& row) {
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int64_t column = slot * kWarp + lane;
    if (column >= p.columns) continue;
    p.values[r * p.columns + column] = row.weight[slot];
    p.errors[r * p.columns + column] = row.error[slot];
    p.removed[r * p.columns + column] = static_cast<uint8_t>(row.removed >> slot & 1u);
  }
}

template <int kSlots>
__device__ inline void sweep_row(const prune_bench_obs_sweep_params& p, const float* factor, int lane, int64_t r) {
  const int columns = static_cast<int>(p.columns);
  const bool grid = p.levels > 0;
  const float scale = grid ? p.scale[r] : 1.0f;
  const float zero = grid ? p.zero[r] : 0.0f;
  const float top = static_cast<float>(p.levels - 1);
  float loss = 0.0f;
  RowPart<kSlots> row;
  load_row<kSlots>(p, r, lane, row);

#pragma unroll
  for (int at = 0; at < kSlots; ++at) {
    for (int owner = 0; owner < kWarp && at * kWarp + owner < columns; ++owner) {
      const int j = at * kWarp + owner;
      if (p.group > 0 && j % p.group == 0) row.removed = select<kSlots>(p, factor, lane, j, row);
      const float w = __shfl_sync(kAllLanes, row.weight[at], owner);
      const bool gone = (__shfl_sync(kAllLanes, row.removed, owner) >> at & 1u) != 0;
      float q = gone ? 0.0f : w;
      if (grid) q = on_grid(q, scale, zero, top);
      const float error = __fdiv_rn(__fsub_rn(w, q), factor[j * columns + j]);
      loss = __fadd_rn(loss, __fmul_rn(error, error));
      if (lane == owner) {
        row.weight[at] = q;
        row.error[at] = error;
      }
#pragma unroll
      for (int slot = at; slot < kSlots; ++slot) {
        const int column = slot * kWarp + lane;
        if (column > j && column < columns) {
          row.weight[slot] = __fsub_rn(row.weight[slot], __fmul_rn(error, factor[j * columns + column]));
        }
      }
    }
  }
  store_row<kSlots>(p, r, lane, row);
  if (lane == 0) p.loss[r] = __fmul_rn(loss, 0.5f);
}

// Blocks take rows in turn, a warp each, after copying the factor once. blockDim.x is a multiple of 32.
template <int kSlots>
__global__ void obs_sweep_kernel(prune_bench_obs_sweep_params p) {
  PRUNE_BENCH_DYNAMIC_SHARED(float, factor);
  const int columns = static_cast<int>(p.columns);
  for (int i = static_cast<int>(threadIdx.x); i < columns * columns; i += static_cast<int>(blockDim.x)) {
    const int row = i / columns;
    const int column = i % columns;
    // Below the diagonal nothing is read: the caller may hold anything there.
    factor[i] = column >= row ? p.factor[row * p.factor_row_stride + column * p.factor_column_stride] : 0.0f;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warps = blockDim.x / kWarp;
  const int64_t first = blockIdx.x * warps + threadIdx.x / kWarp;
  for (int64_t r = first; r < p.rows; r += gridDim.x * warps) sweep_row<kSlots>(p, factor, lane, r);
}

}  // namespace gpu
}  // namespace prune_bench
