// What both AVX-512 variants of the products share. The source that includes this sets PRUNE_BENCH_NAMESPACE.
#pragma once

#include "vectors_avx512.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

constexpr int kDenseRows[] = {0, 4, 4, 4, 4};

// Sixteen columns: load, convert, vpexpandd.
template <int kDtype>
struct WideStep {
  static constexpr int kColumns = kLanes;
  static constexpr int kVectors = 1;
  static constexpr int kRows[] = {0, 2, 4, 4, 4};
  PRUNE_BENCH_INLINE void expand(uint64_t mask, const char* base, int64_t i, Vec (&out)[kVectors]) {
    out[0] = _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), values<kDtype>(base, i));
  }
};

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
