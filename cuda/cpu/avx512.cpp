#define PRUNE_BENCH_NAMESPACE avx512
#define PRUNE_BENCH_LANES 16
#include "sweep_kernel.h"

namespace prune_bench {

const SweepVariant kAvx512Sweep = {PRUNE_BENCH_ISA_AVX512, "avx512",       avx512::kLanes,
                                   avx512::kStrips,        avx512::kWidth, avx512::sweep_tile};

}  // namespace prune_bench
