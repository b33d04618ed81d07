// The sweep, written once for any vector length. Each variant's source sets PRUNE_BENCH_LANES and PRUNE_BENCH_NAMESPACE
// and is compiled with its own instruction-set flags. Nothing here may call an inline function of the standard
// library: the linker keeps one copy of those, which could be one that this processor cannot run.
//
// Lanes are rows. A tile's weights are turned once into [column][lane], swept, and turned back:
//
//     tile  w[0] w[1] ... | panel | ...        one vector a column
//                  e[0..panel) applied          left-looking: the panel stays in registers meanwhile
//
// Each w_k sees the subtractions of e_j U_jk in the order of j, as in the plain column-by-column loop, so the bits
// are those of the plain loop.
#pragma once

#include <stdint.h>

#include "sweep.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

#define PRUNE_BENCH_INLINE static inline __attribute__((always_inline))

constexpr int kLanes = PRUNE_BENCH_LANES;
constexpr int kWidth = kLanes == 16 ? 16 : 8;  // 32 vector registers, or 16

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
typedef int32_t Int __attribute__((vector_size(kLanes * sizeof(int32_t)), may_alias));
typedef float Quad __attribute__((vector_size(4 * sizeof(float)), aligned(4), may_alias));

PRUNE_BENCH_INLINE Vec splat(float x) { return Vec{} + x; }
PRUNE_BENCH_INLINE Vec& at(float* tile, int64_t column) { return *reinterpret_cast<Vec*>(tile + column * kLanes); }
PRUNE_BENCH_INLINE Int& flag_at(int32_t* tile, int64_t column) {
  return *reinterpret_cast<Int*>(tile + column * kLanes);
}

// Rows a..d of four columns become four columns of four rows, and the other way round.
PRUNE_BENCH_INLINE void transpose(Quad& a, Quad& b, Quad& c, Quad& d) {
#if defined(__clang__) || __GNUC__ >= 12
#define PRUNE_BENCH_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
  typedef int32_t Index __attribute__((vector_size(16)));
#define PRUNE_BENCH_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Index{__VA_ARGS__})
#endif
  const Quad ab_low = PRUNE_BENCH_SHUFFLE(a, b, 0, 4, 1, 5);
  const Quad ab_high = PRUNE_BENCH_SHUFFLE(a, b, 2, 6, 3, 7);
  const Quad cd_low = PRUNE_BENCH_SHUFFLE(c, d, 0, 4, 1, 5);
  const Quad cd_high = PRUNE_BENCH_SHUFFLE(c, d, 2, 6, 3, 7);
  a = PRUNE_BENCH_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
  b = PRUNE_BENCH_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
  c = PRUNE_BENCH_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
  d = PRUNE_BENCH_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
#undef PRUNE_BENCH_SHUFFLE
}

PRUNE_BENCH_INLINE Quad& quad(float* p) { return *reinterpret_cast<Quad*>(p); }
PRUNE_BENCH_INLINE Quad quad(const float* p) { return *reinterpret_cast<const Quad*>(p); }

// tile[column][lane] = weight[first_row + lane][column]; lanes beyond the last row hold zero.
static void load_weights(const prune_bench_obs_sweep_params& p, int64_t first_row, int lanes, float* tile) {
  const float* source = p.weight + first_row * p.weight_row_stride;
  const bool whole = lanes == kLanes && p.weight_column_stride == 1;
  const int64_t fast = whole ? p.columns / 4 * 4 : 0;
  for (int64_t c = 0; c < fast; c += 4) {
    for (int lane = 0; lane < kLanes; lane += 4) {
      const float* from = source + lane * p.weight_row_stride + c;
      Quad a = quad(from);
      Quad b = quad(from + p.weight_row_stride);
      Quad d = quad(from + 2 * p.weight_row_stride);
      Quad e = quad(from + 3 * p.weight_row_stride);
      transpose(a, b, d, e);
      float* to = tile + c * kLanes + lane;
      quad(to) = a;
      quad(to + kLanes) = b;
      quad(to + 2 * kLanes) = d;
      quad(to + 3 * kLanes) = e;
    }
  }
  for (int64_t c = fast; c < p.columns; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) {
      tile[c * kLanes + lane] = lane < lanes ? source[lane * p.weight_row_stride + c * p.weight_column_stride] : 0.0f;
    }
  }
}

// out[first_row + lane][column] = tile[column][lane], for a contiguous output.
static void store_rows(const float* tile, int64_t first_row, int lanes, int64_t columns, float* out) {
  float* target = out + first_row * columns;
  const int64_t fast = lanes == kLanes ? columns / 4 * 4 : 0;
  for (int64_t c = 0; c < fast; c += 4) {
    for (int lane = 0; lane < kLanes; lane += 4) {
      const float* from = tile + c * kLanes + lane;
      Quad a = quad(from);
      Quad b = quad(from + kLanes);
      Quad d = quad(from + 2 * kLanes);
      Quad e = quad(from + 3 * kLanes);
      transpose(a, b, d, e);
      float* to = target + lane * columns + c;
      quad(to) = a;
      quad(to + columns) = b;
      quad(to + 2 * columns) = d;
      quad(to + 3 * columns) = e;
    }
  }
  for (int lane = 0; lane < lanes; ++lane) {
    for (int64_t c = fast; c < columns; ++c) target[lane * columns + c] = tile[c * kLanes + lane];
  }
}

// flags[column][lane] = -1 where the mask removes, else 0.
static void load_mask(const prune_bench_obs_sweep_params& p, int64_t first_row, int lanes, int32_t* flags) {
  const uint8_t* source = p.mask + first_row * p.mask_row_stride;
  for (int64_t c = 0; c < p.columns; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const bool remove = lane < lanes && source[lane * p.mask_row_stride + c * p.mask_column_stride] != 0;
      flags[c * kLanes + lane] = remove ? -1 : 0;
    }
  }
}

static void store_flags(const int32_t* flags, int64_t first_row, int lanes, int64_t columns, uint8_t* removed) {
  uint8_t* target = removed + first_row * columns;
  for (int lane = 0; lane < lanes; ++lane) {
    for (int64_t c = 0; c < columns; ++c) {
      target[lane * columns + c] = static_cast<uint8_t>(flags != nullptr && flags[c * kLanes + lane] != 0);
    }
  }
}

// Brings the panel's columns up to date with the errors of columns from..to-1.
template <int kColumns>
static void catch_up_columns(const Panel& panel, const float* errors, int64_t from, int64_t to, float* tile) {
  Vec current[kColumns];
#pragma GCC unroll 16
  for (int i = 0; i < kColumns; ++i) current[i] = at(tile, panel.begin + i);
  for (int64_t j = from; j < to; ++j) {
    const Vec error = *reinterpret_cast<const Vec*>(errors + j * kLanes);
    const float* u = panel.packed + j * kWidth;
#pragma GCC unroll 16
    for (int i = 0; i < kColumns; ++i) current[i] = current[i] - error * splat(u[i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kColumns; ++i) at(tile, panel.begin + i) = current[i];
}

template <int kColumns>
static void catch_up_narrow(const Panel& panel, const float* errors, int64_t from, int64_t to, float* tile) {
  if (panel.end - panel.begin == kColumns) {
    catch_up_columns<kColumns>(panel, errors, from, to, tile);
  } else if constexpr (kColumns > 1) {
    catch_up_narrow<kColumns - 1>(panel, errors, from, to, tile);
  }
}

static void catch_up(const Panel& panel, const float* errors, int64_t from, int64_t to, float* tile) {
  if (from < to) catch_up_narrow<kWidth>(panel, errors, from, to, tile);
}

// Flags the `group - keep` columns of smallest score from `begin` on: those that fewer than `group - keep` others
// precede.
static void select(const SweepJob& job, int64_t begin, const float* tile, float* scores, int32_t* flags) {
  const int64_t group = job.params->group;
  const int32_t remove = static_cast<int32_t>(group - job.params->keep);
  for (int64_t i = 0; i < group; ++i) {
    const Vec w = *reinterpret_cast<const Vec*>(tile + (begin + i) * kLanes);
    const Vec u = splat(job.diagonal[begin + i]);
    const Vec score = (w * w) / (u * u);
    at(scores, i) = score == score ? score : splat(__builtin_inff());
  }
  for (int64_t i = 0; i < group; ++i) {
    const Vec own = at(scores, i);
    Int rank = Int{};
    for (int64_t k = 0; k < i; ++k) rank -= at(scores, k) <= own;
    for (int64_t k = i + 1; k < group; ++k) rank -= at(scores, k) < own;
    flag_at(flags, begin + i) = rank < remove;
  }
}

// Nearest integer, halves to even: adding and taking away 2^23 rounds in the unit's own mode.
PRUNE_BENCH_INLINE Vec round_half_even(Vec x) {
  const Vec magic = splat(8388608.0f);
  const Vec size = x < 0.0f ? -x : x;
  const Vec rounded = (size + magic) - magic;
  return size < magic ? (x < 0.0f ? -rounded : rounded) : x;
}

PRUNE_BENCH_INLINE Vec on_grid(Vec w, Vec scale, Vec zero, float top) {
  Vec level = round_half_even(w / scale) + zero;
  level = level < 0.0f ? splat(0.0f) : level;  // a NaN fails both comparisons and stays
  level = level > top ? splat(top) : level;
  return scale * (level - zero);
}

static Vec load_per_row(const float* values, int64_t first_row, int lanes, float missing) {
  alignas(64) float buffer[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) buffer[lane] = lane < lanes ? values[first_row + lane] : missing;
  return *reinterpret_cast<const Vec*>(buffer);
}

static void sweep_tile(const SweepJob& job, int64_t first_row, float* scratch) noexcept {
  const prune_bench_obs_sweep_params& p = *job.params;
  const int lanes = static_cast<int>(p.rows - first_row < kLanes ? p.rows - first_row : kLanes);
  const bool selects = p.group > 0;
  const bool grid = p.levels > 0;
  float* tile = scratch;
  float* errors = tile + p.columns * kLanes;
  int32_t* flags = nullptr;
  if (selects || p.mask != nullptr) flags = reinterpret_cast<int32_t*>(errors + p.columns * kLanes);

  load_weights(p, first_row, lanes, tile);
  if (p.mask != nullptr) load_mask(p, first_row, lanes, flags);
  const Vec scale = grid ? load_per_row(p.scale, first_row, lanes, 1.0f) : Vec{};
  const Vec zero = grid ? load_per_row(p.zero, first_row, lanes, 0.0f) : Vec{};
  const float top = static_cast<float>(p.levels - 1);

  Vec loss = Vec{};
  for (int64_t index = 0; index < job.panel_count; ++index) {
    const Panel& panel = job.panels[index];
    int64_t applied = 0;
    if (p.group > kWidth) {
      // The selection needs a whole group up to date, which is several panels.
      applied = panel.begin / p.group * p.group;
      if (applied == panel.begin) {
        for (int64_t ahead = index; ahead < job.panel_count && job.panels[ahead].begin < applied + p.group; ++ahead) {
          catch_up(job.panels[ahead], errors, 0, applied, tile);
        }
      }
    }
    catch_up(panel, errors, applied, panel.begin, tile);

    for (int64_t j = panel.begin; j < panel.end; ++j) {
      // Scores lie where the group's own errors will be written afterwards.
      if (selects && j % p.group == 0) select(job, j, tile, errors + j * kLanes, flags);
      const Vec w = at(tile, j);
      Vec q = w;
      if (flags != nullptr) q = flag_at(flags, j) != 0 ? splat(0.0f) : w;
      if (grid) q = on_grid(q, scale, zero, top);
      const Vec error = (w - q) / splat(job.diagonal[j]);
      loss = loss + error * error;
      at(tile, j) = q;
      at(errors, j) = error;
      const float* u = panel.packed + j * kWidth;
      for (int64_t k = j + 1; k < panel.end; ++k) {
        at(tile, k) = at(tile, k) - error * splat(u[k - panel.begin]);
      }
    }
  }

  store_rows(tile, first_row, lanes, p.columns, p.values);
  store_rows(errors, first_row, lanes, p.columns, p.errors);
  store_flags(flags, first_row, lanes, p.columns, p.removed);
  loss = loss * 0.5f;
  for (int lane = 0; lane < lanes; ++lane) p.loss[first_row + lane] = loss[lane];
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
