// The sweep, written once for any vector length. Each variant's source sets PRUNE_BENCH_LANES and PRUNE_BENCH_NAMESPACE
// and is compiled with its own instruction-set flags. Nothing here may call an inline function of the standard
// library: the linker keeps one copy of those, which could be one that this processor cannot run.
//
// A tile is kStrips vectors of rows: lanes are rows. Its weights are turned once into [column][lane], swept, and turned
// back:
//
//     tile  w[0] w[1] ... | panel | ...        one vector a column
//                  e[0..panel) applied          left-looking: the panel stays in registers meanwhile
//
// Each w_k sees the subtractions of e_j U_jk in the order of j, as in the plain column-by-column loop, so the bits
// are those of the plain loop.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "sweep.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

#define PRUNE_BENCH_INLINE static inline __attribute__((always_inline))

constexpr int kLanes = PRUNE_BENCH_LANES;
constexpr int kStrips = 2;
constexpr int kWidth = kLanes == 16 ? 16 : 8;  // 32 vector registers, or 16

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
typedef int32_t Int __attribute__((vector_size(kLanes * sizeof(int32_t)), may_alias));
typedef float Loose __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// The compiler drops a subtraction of zero; an addition it must keep, for the sake of -0.
PRUNE_BENCH_INLINE Vec splat(float x) { return x - Vec{}; }
PRUNE_BENCH_INLINE Vec& at(float* tile, int64_t column) { return *reinterpret_cast<Vec*>(tile + column * kLanes); }

#if defined(__clang__) || __GNUC__ >= 12
#define PRUNE_BENCH_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PRUNE_BENCH_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Int{__VA_ARGS__})
#endif
#if PRUNE_BENCH_LANES == 16
#define PRUNE_BENCH_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define PRUNE_BENCH_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif PRUNE_BENCH_LANES == 8
#define PRUNE_BENCH_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define PRUNE_BENCH_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define PRUNE_BENCH_LOW 0, 4, 1, 5
#define PRUNE_BENCH_HIGH 2, 6, 3, 7
#endif

// One round of riffling the rows of a square; log2(kLanes) rounds transpose it.
PRUNE_BENCH_INLINE void riffle(const Vec (&from)[kLanes], Vec (&to)[kLanes]) {
#pragma GCC unroll 8
  for (int i = 0; i < kLanes / 2; ++i) {
    to[2 * i] = PRUNE_BENCH_SHUFFLE(from[i], from[i + kLanes / 2], PRUNE_BENCH_LOW);
    to[2 * i + 1] = PRUNE_BENCH_SHUFFLE(from[i], from[i + kLanes / 2], PRUNE_BENCH_HIGH);
  }
}

// to[i][lane] = from[lane][i] for i in 0..kLanes-1; strides count floats.
static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  Vec a[kLanes];
  Vec b[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) a[i] = *reinterpret_cast<const Loose*>(from + i * from_stride);
  riffle(a, b);
  riffle(b, a);
  if constexpr (kLanes >= 8) riffle(a, b);
  if constexpr (kLanes >= 16) riffle(b, a);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) *reinterpret_cast<Loose*>(to + i * to_stride) = kLanes == 8 ? b[i] : a[i];
}

// tile[column][lane] = weight[first_row + lane][column]; lanes beyond the last row hold zero.
static void load_weights(const prune_bench_obs_sweep_params& p, int64_t first_row, int lanes, float* tile) {
  const float* source = p.weight + first_row * p.weight_row_stride;
  const bool whole = lanes == kLanes && p.weight_column_stride == 1;
  const int64_t fast = whole ? p.columns / kLanes * kLanes : 0;
  for (int64_t c = 0; c < fast; c += kLanes) transpose(source + c, p.weight_row_stride, tile + c * kLanes, kLanes);
  for (int64_t c = fast; c < p.columns; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) {
      tile[c * kLanes + lane] = lane < lanes ? source[lane * p.weight_row_stride + c * p.weight_column_stride] : 0.0f;
    }
  }
}

// out[first_row + lane][column] = tile[column][lane], for a contiguous output.
static void store_rows(const float* tile, int64_t first_row, int lanes, int64_t columns, float* out) {
  float* target = out + first_row * columns;
  const int64_t fast = lanes == kLanes ? columns / kLanes * kLanes : 0;
  for (int64_t c = 0; c < fast; c += kLanes) transpose(tile + c * kLanes, kLanes, target + c, columns);
  for (int lane = 0; lane < lanes; ++lane) {
    for (int64_t c = fast; c < columns; ++c) target[lane * columns + c] = tile[c * kLanes + lane];
  }
}

// Removal flags: bit c % 32 of flags[c / 32][lane].
static void load_mask(const prune_bench_obs_sweep_params& p, int64_t first_row, int lanes, int32_t* flags) {
  for (int lane = 0; lane < lanes; ++lane) {
    const uint8_t* source = p.mask + (first_row + lane) * p.mask_row_stride;
    for (int64_t begin = 0; begin < p.columns; begin += 32) {
      const int64_t count = p.columns - begin < 32 ? p.columns - begin : 32;
      uint32_t word = 0;
      int64_t c = 0;
      for (; p.mask_column_stride == 1 && c + 8 <= count; c += 8) {
        // Eight bytes at once: any set bit of a byte goes to its lowest, and a product gathers the eight.
        uint64_t bytes;
        __builtin_memcpy(&bytes, source + begin + c, 8);
        bytes |= bytes >> 4 & 0x0f0f0f0f0f0f0f0fu;
        bytes |= bytes >> 2 & 0x3333333333333333u;
        bytes = (bytes | (bytes >> 1 & 0x5555555555555555u)) & 0x0101010101010101u;
        word |= static_cast<uint32_t>(bytes * 0x0102040810204080u >> 56) << c;
      }
      for (; c < count; ++c) word |= static_cast<uint32_t>(source[(begin + c) * p.mask_column_stride] != 0) << c;
      flags[begin / 32 * kLanes + lane] = static_cast<int32_t>(word);
    }
  }
}

static void store_flags(const int32_t* flags, int64_t first_row, int lanes, int64_t columns, uint8_t* removed) {
  uint8_t* target = removed + first_row * columns;
  if (flags == nullptr) {
    __builtin_memset(target, 0, static_cast<size_t>(lanes * columns));
    return;
  }
  for (int lane = 0; lane < lanes; ++lane, target += columns) {
    int64_t c = 0;
    for (; c + 8 <= columns; c += 8) {
      // Eight bits spread to eight bytes, each kept where its own bit is.
      const uint64_t bits = static_cast<uint32_t>(flags[c / 32 * kLanes + lane]) >> c % 32 & 0xffu;
      const uint64_t spread = (bits * 0x0101010101010101u) & 0x8040201008040201u;
      const uint64_t bytes = (spread + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
      __builtin_memcpy(target + c, &bytes, 8);
    }
    for (; c < columns; ++c) {
      target[c] = static_cast<uint8_t>(static_cast<uint32_t>(flags[c / 32 * kLanes + lane]) >> c % 32 & 1u);
    }
  }
}

PRUNE_BENCH_INLINE Int flagged(const int32_t* flags, int64_t column) {
  const Int word = *reinterpret_cast<const Int*>(flags + column / 32 * kLanes);
  return (word & static_cast<int32_t>(1u << column % 32)) != 0;
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
    const Vec d = splat(job.divisor[begin + i]);
    const Vec score = (w * w) / (d * d);
    at(scores, i) = score == score ? score : splat(__builtin_inff());
  }
  for (int64_t i = 0; i < group; ++i) {
    const Vec own = at(scores, i);
    Int rank = Int{};
    for (int64_t k = 0; k < i; ++k) rank -= at(scores, k) <= own;
    for (int64_t k = i + 1; k < group; ++k) rank -= at(scores, k) < own;
    const int64_t column = begin + i;
    Int& word = *reinterpret_cast<Int*>(flags + column / 32 * kLanes);
    word |= (rank < remove) & static_cast<int32_t>(1u << column % 32);
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

// What a vector of rows needs while it is swept.
struct Strip {
  int64_t first_row;
  int lanes;  // rows there are; none for a strip beyond the last row
  float* tile;
  float* errors;
  int32_t* flags;  // null where nothing is removed
  Vec scale;
  Vec zero;
  Vec loss;
};

static void open_strip(const prune_bench_obs_sweep_params& p, int64_t first_row, float* scratch, Strip& strip) {
  const int64_t left = p.rows - first_row;
  strip.first_row = first_row;
  strip.lanes = static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
  strip.tile = scratch;
  strip.errors = strip.tile + p.columns * kLanes;
  strip.flags = nullptr;
  if (p.group > 0 || p.mask != nullptr) {
    strip.flags = reinterpret_cast<int32_t*>(strip.errors + p.columns * kLanes);
    __builtin_memset(strip.flags, 0, static_cast<size_t>((p.columns + 31) / 32 * kLanes) * sizeof(int32_t));
  }
  load_weights(p, first_row, strip.lanes, strip.tile);
  if (p.mask != nullptr) load_mask(p, first_row, strip.lanes, strip.flags);
  strip.scale = p.levels > 0 ? load_per_row(p.scale, first_row, strip.lanes, 1.0f) : splat(1.0f);
  strip.zero = p.levels > 0 ? load_per_row(p.zero, first_row, strip.lanes, 0.0f) : Vec{};
  strip.loss = Vec{};
}

static void close_strip(const prune_bench_obs_sweep_params& p, const Strip& strip) {
  store_rows(strip.tile, strip.first_row, strip.lanes, p.columns, p.values);
  store_rows(strip.errors, strip.first_row, strip.lanes, p.columns, p.errors);
  store_flags(strip.flags, strip.first_row, strip.lanes, p.columns, p.removed);
  const Vec loss = strip.loss * 0.5f;
  for (int lane = 0; lane < strip.lanes; ++lane) p.loss[strip.first_row + lane] = loss[lane];
}

// Prunes, rounds and records column j, and compensates the rest of the panel.
PRUNE_BENCH_INLINE void sweep_column(const SweepJob& job, const Panel& panel, int64_t j, Strip& strip) {
  const prune_bench_obs_sweep_params& p = *job.params;
  const Vec w = at(strip.tile, j);
  Vec q = w;
  if (strip.flags != nullptr) q = flagged(strip.flags, j) ? splat(0.0f) : w;
  if (p.levels > 0) q = on_grid(q, strip.scale, strip.zero, static_cast<float>(p.levels - 1));
  const Vec error = (w - q) / splat(job.diagonal[j]);
  strip.loss = strip.loss + error * error;
  at(strip.tile, j) = q;
  at(strip.errors, j) = error;
  const float* u = panel.packed + j * kWidth;
  for (int64_t k = j + 1; k < panel.end; ++k) {
    at(strip.tile, k) = at(strip.tile, k) - error * splat(u[k - panel.begin]);
  }
}

static void sweep_tile(const SweepJob& job, int64_t first_row, float* scratch) noexcept {
  const prune_bench_obs_sweep_params& p = *job.params;
  // Column after column waits for the one before; strips wait for nothing of each other and hide the wait.
  Strip strips[kStrips];
  for (int s = 0; s < kStrips; ++s) {
    open_strip(p, first_row + s * kLanes, scratch + s * scratch_floats(kLanes, p.columns), strips[s]);
  }
  for (int64_t index = 0; index < job.panel_count; ++index) {
    const Panel& panel = job.panels[index];
    int64_t applied = 0;
    if (p.group > kWidth) {
      // The selection needs a whole group up to date, which is several panels.
      applied = panel.begin / p.group * p.group;
      if (applied == panel.begin) {
        for (int64_t ahead = index; ahead < job.panel_count && job.panels[ahead].begin < applied + p.group; ++ahead) {
          for (Strip& strip : strips) catch_up(job.panels[ahead], strip.errors, 0, applied, strip.tile);
        }
      }
    }
    for (Strip& strip : strips) catch_up(panel, strip.errors, applied, panel.begin, strip.tile);
    for (int64_t j = panel.begin; j < panel.end; ++j) {
      if (p.group > 0 && j % p.group == 0) {
        // Scores lie where the group's own errors will be written afterwards.
        for (Strip& strip : strips) select(job, j, strip.tile, strip.errors + j * kLanes, strip.flags);
      }
      for (Strip& strip : strips) sweep_column(job, panel, j, strip);
    }
  }
  for (const Strip& strip : strips) close_strip(p, strip);
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
