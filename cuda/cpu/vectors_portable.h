// Vectors for any processor, by the compiler's extension. The source that includes this sets PRUNE_BENCH_NAMESPACE.
#pragma once

#include <stdint.h>

#include "inline.h"
#include "prune_bench.h"
#include "scalars.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

constexpr int kLanes = 4;

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
typedef float Loose __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

PRUNE_BENCH_INLINE Vec zero() { return Vec{}; }
PRUNE_BENCH_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
PRUNE_BENCH_INLINE Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
PRUNE_BENCH_INLINE void store(float* to, Vec x) { *reinterpret_cast<Loose*>(to) = x; }
PRUNE_BENCH_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
PRUNE_BENCH_INLINE float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }

template <int kDtype>
PRUNE_BENCH_INLINE Vec values(const char* base, int64_t i) {
  return Vec{value<kDtype>(base, i), value<kDtype>(base, i + 1), value<kDtype>(base, i + 2),
             value<kDtype>(base, i + 3)};
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
