// The sparse product for few tokens: lanes are columns, and packed values are spread over them.
#pragma once

#include "product_kernel.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

constexpr int64_t kBitmapAhead = 1024;

// A step of a row whose values may end before all of it could be read: the last ones are copied first.
template <int kDtype>
struct Checked {
  using Step = PRUNE_BENCH_NAMESPACE::Step<kDtype>;
  PRUNE_BENCH_INLINE bool expand(uint64_t mask, const char* base, int64_t index, int64_t nonzeros,
                                 Vec (&out)[Step::kVectors]) {
    if (index <= nonzeros - Step::kColumns) {
      Step::expand(mask, base, index, out);
      return true;
    }
    alignas(64) char buffer[Step::kColumns * size_of<kDtype>()];
    __builtin_memset(buffer, 0, sizeof buffer);
    const int64_t count = __builtin_popcountll(mask);
    if (count > nonzeros - index) return false;
    // Without a value there may be no memory either.
    if (count > 0) {
      __builtin_memcpy(buffer, base + index * size_of<kDtype>(), static_cast<size_t>(count * size_of<kDtype>()));
    }
    Step::expand(mask, buffer, 0, out);
    return true;
  }
};

// kRows rows that begin at `first` and lie `apart`, with kTokens tokens from `token` on. Each row has its own sums, so
// its bits do not depend on which rows go with it.
template <int kDtype, int kTokens, int kRows, bool kChecked>
static bool expand_rows(const SparseJob& job, int64_t first, int64_t apart, int64_t token) {
  using Step = PRUNE_BENCH_NAMESPACE::Step<kDtype>;
  constexpr int kSums = kTokens == 1 ? 2 : 1;  // two where one would wait for itself
  constexpr uint64_t kMask = Step::kColumns == 64 ? ~uint64_t{0} : (uint64_t{1} << Step::kColumns % 64) - 1;
  const prune_bench_bitmap& w = job.weight;
  const int64_t words = padded(w.columns) / kWordColumns;
  const char* base = static_cast<const char*>(w.values);
  const float* x = job.x + token * job.x_pitch;
  int64_t index[kRows];
  const uint64_t* bits[kRows];
  Vec sums[kRows][kTokens][kSums];
#pragma GCC unroll 4
  for (int k = 0; k < kRows; ++k) {
    index[k] = row_begin(w, first + k * apart);
    bits[k] = w.bitmap + (first + k * apart) * words;
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      for (int s = 0; s < kSums; ++s) sums[k][t][s] = zero();
    }
  }
  for (int64_t word = 0; word < words; ++word) {
    uint64_t mask[kRows];
#pragma GCC unroll 4
    for (int k = 0; k < kRows; ++k) {
      mask[k] = bits[k][word];
      if (kChecked) continue;
      const char* ahead = base + index[k] * size_of<kDtype>() + kAhead;
      for (int64_t line = 0; line < size_of<kDtype>(); ++line) fetch(ahead + 64 * line);
      if (word % 8 == 0) fetch(reinterpret_cast<const char*>(bits[k] + word) + kBitmapAhead);
    }
#pragma GCC unroll 16
    for (int step = 0; step < kWordColumns / Step::kColumns; ++step) {
      Vec weights[kRows][Step::kVectors];
#pragma GCC unroll 4
      for (int k = 0; k < kRows; ++k) {
        const uint64_t part = mask[k] >> step * Step::kColumns & kMask;
        if (kChecked) {
          if (!Checked<kDtype>::expand(part, base, index[k], w.nonzeros, weights[k])) return false;
        } else {
          Step::expand(part, base, index[k], weights[k]);
        }
        index[k] += __builtin_popcountll(part);
      }
#pragma GCC unroll 4
      for (int v = 0; v < Step::kVectors; ++v) {
        const int64_t column = word * kWordColumns + step * Step::kColumns + v * kLanes;
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          Vec factor = load(x + t * job.x_pitch + column);
          hold(factor);
#pragma GCC unroll 4
          for (int k = 0; k < kRows; ++k) {
            Vec& total = sums[k][t][(step * Step::kVectors + v) % kSums];
            total = fma(weights[k][v], factor, total);
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kRows; ++k) {
    const int64_t row = first + k * apart;
    if (w.group == 0 && index[k] != w.offsets[row + 1]) return false;
    if (w.group > 0 && index[k] != row_begin(w, row + 1)) return false;
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const float total = sum(kSums == 2 ? sums[k][t][0] + sums[k][t][kSums - 1] : sums[k][t][0]);
      write(job, w.scales, token + t, row, total);
    }
  }
  return true;
}

// Whether reading a row by whole steps stays within the values, whatever its bitmap says.
PRUNE_BENCH_INLINE bool roomy(const prune_bench_bitmap& w, int64_t row) {
  const int64_t begin = row_begin(w, row);
  return begin >= 0 && begin <= w.nonzeros - (padded(w.columns) + kWordColumns);
}

template <int kDtype, int kTokens>
static bool expand_row(const SparseJob& job, int64_t row, int64_t token) {
  if (roomy(job.weight, row)) return expand_rows<kDtype, kTokens, 1, false>(job, row, 0, token);
  const int64_t begin = row_begin(job.weight, row);
  if (begin < 0 || begin > job.weight.nonzeros) return false;
  return expand_rows<kDtype, kTokens, 1, true>(job, row, 0, token);
}

// As many neighbouring streams as the registers hold: each walks its own run of rows, so that what is fetched ahead at
// the end of a row is the start of the next.
template <int kDtype, int kTokens>
static bool expand_tokens(const SparseJob& job, int64_t first, int64_t apart, int64_t token) {
  constexpr int kTogether = Step<kDtype>::kRows[kTokens];
  bool all = true;
  for (int k = 0; k < kTogether; ++k) all = all && roomy(job.weight, first + k * apart);
  if (all) return expand_rows<kDtype, kTokens, kTogether, false>(job, first, apart, token);
  for (int k = 0; k < kTogether; ++k) {
    if (!expand_row<kDtype, kTokens>(job, first + k * apart, token)) return false;
  }
  return true;
}

template <int kDtype, int kTokens>
static bool expand_range(const SparseJob& job, int64_t begin, int64_t end) {
  constexpr int kTogether = Step<kDtype>::kRows[kTokens];
  const int64_t apart = (end - begin) / kTogether;
  const int64_t rest = begin + kTogether * apart;
  // Tokens beyond the block go over the same rows again, whose values then lie in a cache.
  for (int64_t i = 0; i < apart; ++i) {
    for (int64_t token = 0; token < job.tokens; token += kTokens) {
      const int64_t from = token + kTokens <= job.tokens ? token : job.tokens - kTokens;
      if (!expand_tokens<kDtype, kTokens>(job, begin + i, apart, from)) return false;
    }
  }
  for (int64_t row = rest; row < end; ++row) {
    for (int64_t token = 0; token < job.tokens; token += kTokens) {
      const int64_t from = token + kTokens <= job.tokens ? token : job.tokens - kTokens;
      if (!expand_row<kDtype, kTokens>(job, row, from)) return false;
    }
  }
  return true;
}

template <int kDtype>
static bool expand(const SparseJob& job, int64_t begin, int64_t end) {
  const int64_t blocks = (job.tokens + kMostTokens - 1) / kMostTokens;
  switch ((job.tokens + blocks - 1) / blocks) {
    case 1:
      return expand_range<kDtype, 1>(job, begin, end);
    case 2:
      return expand_range<kDtype, 2>(job, begin, end);
    case 3:
      return expand_range<kDtype, 3>(job, begin, end);
    default:
      return expand_range<kDtype, 4>(job, begin, end);
  }
}

static bool expand_any(const SparseJob& job, int64_t begin, int64_t end) {
  switch (job.weight.dtype) {
    case PRUNE_BENCH_FLOAT32:
      return expand<PRUNE_BENCH_FLOAT32>(job, begin, end);
    case PRUNE_BENCH_BFLOAT16:
      return expand<PRUNE_BENCH_BFLOAT16>(job, begin, end);
    case PRUNE_BENCH_FLOAT16:
      return expand<PRUNE_BENCH_FLOAT16>(job, begin, end);
    default:
      return expand<PRUNE_BENCH_INT8>(job, begin, end);
  }
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
