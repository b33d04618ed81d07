// What the CPU sweep's variants share: the job as they see it, and the table of variants.
#pragma once

#include "prune_bench.h"

namespace prune_bench {

// Consecutive columns that a variant holds in registers, with its part of the factor, packed row by row.
struct Panel {
  int64_t begin;
  int64_t end;
  const float* packed;  // [end, width], zero beyond the panel's own columns
};

struct SweepJob {
  const prune_bench_obs_sweep_params* params;
  const Panel* panels;
  int64_t panel_count;
  const float* diagonal;  // [columns]
  const float* divisor;   // [columns], of the selection
};

// One build of the sweep. A vector lane holds a row, so no operation crosses lanes; a tile is `strips` vectors of rows.
struct SweepVariant {
  int32_t isa;
  const char* name;
  int lanes;
  int strips;
  int width;  // of a panel
  void (*tile)(const SweepJob& job, int64_t first_row, float* scratch) noexcept;
};

// Floats of scratch that a strip needs: weights and errors of its rows, and a removal bit for each weight.
constexpr int64_t scratch_floats(int lanes, int64_t columns) { return lanes * (2 * columns + (columns + 31) / 32); }

extern const SweepVariant kPortableSweep;
#if defined(PRUNE_BENCH_X86)
extern const SweepVariant kAvx2Sweep;
extern const SweepVariant kAvx512Sweep;
#endif

}  // namespace prune_bench
