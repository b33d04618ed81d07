#include "isa.h"

#include "prune_bench.h"

#if defined(PRUNE_BENCH_X86)
#include <cpuid.h>
#endif

namespace prune_bench {
namespace {

#if defined(PRUNE_BENCH_X86)
// Half-precision conversion, which no compiler's __builtin_cpu_supports names everywhere.
bool has_f16c() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// What the AVX2 sources are compiled for.
bool has_avx2() noexcept {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt") && has_f16c();
  return has;
}

bool has_avx512() noexcept { return has_avx2() && __builtin_cpu_supports("avx512f"); }
#endif

}  // namespace

bool runs_here(int32_t isa) noexcept {
  switch (isa) {
    case PRUNE_BENCH_ISA_PORTABLE:
      return true;
#if defined(PRUNE_BENCH_X86)
    case PRUNE_BENCH_ISA_AVX2:
      return has_avx2();
    case PRUNE_BENCH_ISA_AVX512:
      return has_avx512();
    case PRUNE_BENCH_ISA_AVX512_VBMI2:
      return has_avx512() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vbmi2");
#endif
    default:
      return false;
  }
}

}  // namespace prune_bench
