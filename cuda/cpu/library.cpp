// The sweep's C interface on CPUs: checks, choice of the variant, packing, and the spreading of tiles over threads.
#include <new>

#include "buffer.h"
#include "check.h"
#include "isa.h"
#include "pool.h"
#include "sweep.h"

namespace prune_bench {
namespace {

const SweepVariant* variant(int32_t isa) noexcept {
#if defined(PRUNE_BENCH_X86)
  return chosen(isa, {&kAvx512Sweep, &kAvx2Sweep, &kPortableSweep});
#else
  return chosen(isa, {&kPortableSweep});
#endif
}

// The factor, cut into panels that no group of the selection straddles unless it is wider than a panel.
struct Packed {
  Buffer<Panel> panels;
  Buffer<float> factor;
  Buffer<float> diagonal;
  int64_t count = 0;

  bool build(const prune_bench_obs_sweep_params& p, int width) noexcept {
    const int64_t step = p.group > 0 && p.group <= width ? width / p.group * p.group : width;
    panels = allocate<Panel>(p.columns);
    diagonal = allocate<float>(p.columns);
    if (!panels || !diagonal) return false;
    int64_t floats = 0;
    for (int64_t begin = 0; begin < p.columns;) {
      int64_t end = begin + step < p.columns ? begin + step : p.columns;
      const int64_t boundary = p.group > width ? (begin / p.group + 1) * p.group : end;
      if (end > boundary) end = boundary;
      panels[count++] = Panel{begin, end, nullptr};
      floats += end * width;
      begin = end;
    }
    factor = allocate<float>(floats);
    if (!factor) return false;
    float* to = factor.get();
    for (int64_t index = 0; index < count; ++index) {
      Panel& panel = panels[index];
      panel.packed = to;
      for (int64_t j = 0; j < panel.end; ++j, to += width) {
        for (int64_t k = 0; k < width; ++k) {
          const int64_t column = panel.begin + k;
          // Below the diagonal nothing is read: the caller may hold anything there.
          const bool inside = column < panel.end && column >= j;
          to[k] = inside ? p.factor[j * p.factor_row_stride + column * p.factor_column_stride] : 0.0f;
        }
      }
    }
    for (int64_t j = 0; j < p.columns; ++j) {
      diagonal[j] = p.factor[j * (p.factor_row_stride + p.factor_column_stride)];
    }
    return true;
  }
};

struct Work {
  SweepJob job;
  const SweepVariant* variant;
  float* scratch;
  int64_t scratch_floats;
};

void run_tile(void* context, int slot, int64_t index) noexcept {
  const Work& work = *static_cast<const Work*>(context);
  work.variant->tile(work.job, index * work.variant->lanes * work.variant->strips,
                     work.scratch + slot * work.scratch_floats);
}

int32_t obs_sweep(const prune_bench_obs_sweep_params* params) {
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_obs_sweep_params& p = *params;
  if (p.threads < 0) return PRUNE_BENCH_BAD_THREADS;
  const SweepVariant* chosen = variant(p.isa);
  if (chosen == nullptr) return PRUNE_BENCH_NO_SUCH_ISA;
  if (p.rows == 0) return PRUNE_BENCH_OK;
  if (p.columns == 0) {
    for (int64_t row = 0; row < p.rows; ++row) p.loss[row] = 0.0f;
    return PRUNE_BENCH_OK;
  }

  Packed packed;
  if (!packed.build(p, chosen->width)) return PRUNE_BENCH_OUT_OF_MEMORY;
  const int64_t tile_rows = static_cast<int64_t>(chosen->lanes) * chosen->strips;
  const int64_t tiles = (p.rows + tile_rows - 1) / tile_rows;
  int64_t threads = Pool::granted(p.threads);
  if (threads > tiles) threads = tiles;
  // A whole number of cache lines, so that threads share none.
  const int64_t floats = (chosen->strips * scratch_floats(chosen->lanes, p.columns) + 15) / 16 * 16;
  Buffer<float> scratch = allocate<float>(threads * floats);
  if (!scratch) return PRUNE_BENCH_OUT_OF_MEMORY;

  const float* diagonal = packed.diagonal.get();
  const float* divisor = p.divisor != nullptr ? p.divisor : diagonal;
  Work work{{params, packed.panels.get(), packed.count, diagonal, divisor}, chosen, scratch.get(), floats};
  Pool::instance().run(static_cast<int>(threads), tiles, run_tile, &work);
  return PRUNE_BENCH_OK;
}

}  // namespace
}  // namespace prune_bench

extern "C" {

int32_t prune_bench_cpu_obs_sweep(const prune_bench_obs_sweep_params* params) {
  try {
    return prune_bench::obs_sweep(params);
  } catch (const std::bad_alloc&) {
    return PRUNE_BENCH_OUT_OF_MEMORY;
  }
}

int32_t prune_bench_cpu_has_isa(int32_t isa) { return prune_bench::runs_here(isa) ? 1 : 0; }

const char* prune_bench_cpu_isa(void) { return prune_bench::variant(PRUNE_BENCH_ISA_BEST)->name; }

}  // extern "C"
