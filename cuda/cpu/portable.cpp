#define PRUNE_BENCH_NAMESPACE portable
#define PRUNE_BENCH_LANES 4
#include "sweep_kernel.h"

namespace prune_bench {

const SweepVariant kPortableSweep = {PRUNE_BENCH_ISA_PORTABLE, "portable",       portable::kLanes,
                                     portable::kStrips,        portable::kWidth, portable::sweep_tile};

}  // namespace prune_bench
