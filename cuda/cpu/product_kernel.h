// The products, written once in product_expand.h, product_gather.h and product_dense.h. Each variant's source includes
// those it needs after it has defined, in namespace prune_bench::PRUNE_BENCH_NAMESPACE:
//
//   kLanes, Vec               floats in a vector
//   zero, splat, load, store, fma, sum
//   values<dtype>(base, i)    kLanes stored values from index i on, as floats
//   kDenseRows[t]             rows that go together with t tokens: as many sums as the registers hold
//   Step<dtype> (expand)      kColumns columns at once: expand(mask, base, i, out) puts the values from index i on
//   where
//                             the mask's bits are and zero elsewhere; it may read kColumns values. kRows[t] as above
//   kLists, list (gather)     whether the columns of a mask are listed by one instruction, and that
//
// and is compiled with its own instruction-set flags. Nothing here may call an inline function of the standard library:
// the linker keeps one copy of those, which could be one that this processor cannot run.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "product.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

constexpr int64_t kAhead = 2048;  // bytes of values fetched ahead of their use
constexpr int kMostTokens = 4;    // that a row's sums are held for at once

template <int kDtype>
constexpr int64_t size_of() {
  return kDtype == PRUNE_BENCH_FLOAT32 ? 4 : kDtype == PRUNE_BENCH_INT8 ? 1 : 2;
}

PRUNE_BENCH_INLINE void fetch(const char* address) { __builtin_prefetch(address, 0, 3); }
PRUNE_BENCH_INLINE void fetch_far(const char* address) { __builtin_prefetch(address, 0, 2); }

// A value that several operations use: without this the compiler loads it again for each.
PRUNE_BENCH_INLINE void hold(Vec& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#else
  (void)x;
#endif
}

PRUNE_BENCH_INLINE void write(const ProductJob& job, const float* scales, int64_t token, int64_t row, float total) {
  float value = scales != nullptr ? total * scales[row] : total;
  if (job.bias != nullptr) value = value + job.bias[row];
  job.y[token * job.y_row_stride + row] = value;
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
