// The dense product that sparse ones are measured against.
#pragma once

#include "product_kernel.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

template <int kDtype, int kTokens, int kRows>
static void dense_rows(const DenseJob& job, int64_t first, int64_t apart, int64_t token) {
  constexpr int kSums = kTokens == 1 ? 2 : 1;
  const prune_bench_dense_matmul_params& p = *job.params;
  const float* x = job.x + token * job.x_pitch;
  const char* base[kRows];
  Vec sums[kRows][kTokens][kSums];
#pragma GCC unroll 4
  for (int k = 0; k < kRows; ++k) {
    base[k] = static_cast<const char*>(p.weight) + (first + k * apart) * p.weight_row_stride * size_of<kDtype>();
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      for (int s = 0; s < kSums; ++s) sums[k][t][s] = zero();
    }
  }
  const auto multiply = [&](int64_t column, const Vec(&weights)[kRows], int s) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      Vec factor = load(x + t * job.x_pitch + column);
      hold(factor);
#pragma GCC unroll 4
      for (int k = 0; k < kRows; ++k) sums[k][t][s] = fma(weights[k], factor, sums[k][t][s]);
    }
  };
  const int64_t whole = p.columns / (kSums * kLanes) * (kSums * kLanes);
  for (int64_t column = 0; column < whole; column += kSums * kLanes) {
#pragma GCC unroll 2
    for (int s = 0; s < kSums; ++s) {
      Vec weights[kRows];
#pragma GCC unroll 4
      for (int k = 0; k < kRows; ++k) {
        fetch(base[k] + (column + s * kLanes) * size_of<kDtype>() + kAhead);
        weights[k] = values<kDtype>(base[k], column + s * kLanes);
      }
      multiply(column + s * kLanes, weights, s);
    }
  }
  for (int64_t column = whole; column < p.columns; column += kLanes) {
    const int64_t left = p.columns - column < kLanes ? p.columns - column : kLanes;
    Vec weights[kRows];
    for (int k = 0; k < kRows; ++k) {
      alignas(64) char last[kLanes * size_of<kDtype>()];
      __builtin_memset(last, 0, sizeof last);
      __builtin_memcpy(last, base[k] + column * size_of<kDtype>(), static_cast<size_t>(left * size_of<kDtype>()));
      weights[k] = values<kDtype>(last, 0);
    }
    multiply(column, weights, 0);
  }
#pragma GCC unroll 4
  for (int k = 0; k < kRows; ++k) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const float total = sum(kSums == 2 ? sums[k][t][0] + sums[k][t][kSums - 1] : sums[k][t][0]);
      write(job, p.scales, token + t, first + k * apart, total);
    }
  }
}

template <int kDtype, int kTokens>
static void dense_range(const DenseJob& job, int64_t begin, int64_t end) {
  constexpr int kTogether = kDenseRows[kTokens];
  const int64_t apart = (end - begin) / kTogether;
  const auto tokens = [&](auto&& body) __attribute__((always_inline)) {
    for (int64_t token = 0; token < job.tokens; token += kTokens) {
      body(token + kTokens <= job.tokens ? token : job.tokens - kTokens);
    }
  };
  for (int64_t i = 0; i < apart; ++i) {
    tokens([&](int64_t token) { dense_rows<kDtype, kTokens, kTogether>(job, begin + i, apart, token); });
  }
  for (int64_t row = begin + kTogether * apart; row < end; ++row) {
    tokens([&](int64_t token) { dense_rows<kDtype, kTokens, 1>(job, row, 0, token); });
  }
}

template <int kDtype>
static void dense(const DenseJob& job, int64_t begin, int64_t end) {
  const int64_t blocks = (job.tokens + kMostTokens - 1) / kMostTokens;
  switch ((job.tokens + blocks - 1) / blocks) {
    case 1:
      return dense_range<kDtype, 1>(job, begin, end);
    case 2:
      return dense_range<kDtype, 2>(job, begin, end);
    case 3:
      return dense_range<kDtype, 3>(job, begin, end);
    default:
      return dense_range<kDtype, 4>(job, begin, end);
  }
}

static void dense_any(const DenseJob& job, int64_t begin, int64_t end) {
  switch (job.params->dtype) {
    case PRUNE_BENCH_FLOAT32:
      return dense<PRUNE_BENCH_FLOAT32>(job, begin, end);
    case PRUNE_BENCH_BFLOAT16:
      return dense<PRUNE_BENCH_BFLOAT16>(job, begin, end);
    case PRUNE_BENCH_FLOAT16:
      return dense<PRUNE_BENCH_FLOAT16>(job, begin, end);
    default:
      return dense<PRUNE_BENCH_INT8>(job, begin, end);
  }
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
