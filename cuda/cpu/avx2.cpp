#define PRUNE_BENCH_NAMESPACE avx2
#define PRUNE_BENCH_LANES 8
#include "sweep_kernel.h"

namespace prune_bench {

const SweepVariant kAvx2Sweep = {PRUNE_BENCH_ISA_AVX2, "avx2",       avx2::kLanes,
                                 avx2::kStrips,        avx2::kWidth, avx2::sweep_tile};

}  // namespace prune_bench
