// The sparse product for many tokens: lanes are tokens, and only stored weights are visited.
#pragma once

#include "product_kernel.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

// The next `count` values as floats: in place, or converted into `buffer`.
template <int kDtype>
PRUNE_BENCH_INLINE const float* floats(const prune_bench_bitmap& w, int64_t index, int64_t count, float* buffer) {
  const char* base = static_cast<const char*>(w.values);
  if (kDtype == PRUNE_BENCH_FLOAT32) return reinterpret_cast<const float*>(base) + index;
  for (int64_t i = 0; i < count; i += kLanes) {
    if (index + i + kLanes <= w.nonzeros) {
      store(buffer + i, values<kDtype>(base, index + i));
    } else {
      alignas(64) char last[kLanes * size_of<kDtype>()];
      __builtin_memset(last, 0, sizeof last);
      __builtin_memcpy(last, base + (index + i) * size_of<kDtype>(),
                       static_cast<size_t>((w.nonzeros - index - i) * size_of<kDtype>()));
      store(buffer + i, values<kDtype>(last, 0));
    }
  }
  return buffer;
}

constexpr int64_t kTileFloats = 4096;  // of x, which stay in the first-level cache

template <int kVectors>
constexpr int64_t kTileWords =
    kTileFloats / (kVectors * kLanes * kWordColumns) < 1 ? 1 : kTileFloats / (kVectors * kLanes * kWordColumns);

// One row's part of a tile of columns: sums[v] += weight[c] * x[c][v] over the stored c.
template <int kVectors>
struct RowSums {
  static constexpr int kSums = kVectors == 1 ? 4 : 2;  // so that none waits for itself
  Vec total[kSums][kVectors];

  explicit PRUNE_BENCH_MEMBER RowSums(const float* sums) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      total[0][v] = load(sums + v * kLanes);
      for (int s = 1; s < kSums; ++s) total[s][v] = zero();
    }
  }

  PRUNE_BENCH_MEMBER void add(int s, float weight, const float* x) {
    const Vec factor = splat(weight);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[s][v] = fma(factor, load(x + v * kLanes), total[s][v]);
  }

  PRUNE_BENCH_MEMBER void put(float* sums) const {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec all = total[0][v];
      for (int s = 1; s < kSums; ++s) all = all + total[s][v];
      store(sums + v * kLanes, all);
    }
  }
};

// Bit by bit.
template <int kVectors>
PRUNE_BENCH_INLINE void gather_words(const uint64_t* bits, int64_t words, const float* weights, const float* x,
                                     float* sums) {
  constexpr int64_t kWidth = kVectors * kLanes;
  RowSums<kVectors> row(sums);
  constexpr int kSums = RowSums<kVectors>::kSums;
  for (int64_t word = 0; word < words; ++word, x += kWordColumns * kWidth) {
    uint64_t mask = bits[word];
    int left = __builtin_popcountll(mask);
    for (; left >= kSums; left -= kSums) {
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s, mask &= mask - 1) row.add(s, *weights++, x + __builtin_ctzll(mask) * kWidth);
    }
    for (; left > 0; --left, mask &= mask - 1) row.add(0, *weights++, x + __builtin_ctzll(mask) * kWidth);
  }
  row.put(sums);
}

// The stored columns of a row's part of a tile, listed a row before they are used: what was just written is slow to
// read.
template <int kVectors>
struct TileList {
  static_assert(!kLists || kVectors > 1 || kTileWords<kVectors> <= 4, "a column's place in the tile is a byte");
  int count = 0;
  uint8_t columns[(kTileWords<kVectors> + 1) * kWordColumns];

  PRUNE_BENCH_MEMBER void read(const uint64_t* bits, int64_t words) {
    count = 0;
    for (int64_t word = 0; word < words; ++word) {
      list(bits[word], static_cast<int>(word * kWordColumns), columns + count);
      count += __builtin_popcountll(bits[word]);
    }
  }

  PRUNE_BENCH_MEMBER void gather(const float* weights, const float* x, float* sums) const {
    constexpr int64_t kWidth = kVectors * kLanes;
    RowSums<kVectors> row(sums);
    constexpr int kSums = RowSums<kVectors>::kSums;
    int i = 0;
    for (; i + kSums <= count; i += kSums) {
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) row.add(s, weights[i + s], x + columns[i + s] * kWidth);
    }
    for (; i < count; ++i) row.add(0, weights[i], x + columns[i] * kWidth);
    row.put(sums);
  }
};

constexpr int64_t kBlockRows = 32;  // whose sums stay in the first-level cache while their tiles pass

template <int kDtype, int kVectors>
static bool gather_block(const SparseJob& job, int64_t begin, int64_t count, const float* x, int64_t token) {
  constexpr int64_t kWidth = kVectors * kLanes;
  const prune_bench_bitmap& w = job.weight;
  const int64_t words = padded(w.columns) / kWordColumns;
  alignas(64) float sums[kBlockRows * kWidth];
  alignas(64) float buffer[kTileWords<kVectors> * kWordColumns + kLanes];
  int64_t index[kBlockRows];
  __builtin_memset(sums, 0, static_cast<size_t>(count * kWidth) * sizeof(float));
  for (int64_t r = 0; r < count; ++r) {
    index[r] = row_begin(w, begin + r);
    if (index[r] < 0 || index[r] > w.nonzeros) return false;
  }
  const char* base = static_cast<const char*>(w.values);
  // The rows behind this block are fetched to the second-level cache while it is worked on, the row behind this one to
  // the first; by as many lines as a tile has on average, since a loop of changing length costs more than a line too
  // many.
  const int64_t tiles = (words + kTileWords<kVectors> - 1) / kTileWords<kVectors>;
  const int64_t lines = tiles == 0 ? 0 : w.nonzeros * size_of<kDtype>() / (w.rows * tiles * 64) + 1;
  const int64_t behind = row_begin(w, begin + count);
  const char* far = base + (behind < 0 || behind > w.nonzeros ? 0 : behind) * size_of<kDtype>();
  TileList<kVectors> lists[2];
  for (int64_t word = 0; word < words; word += kTileWords<kVectors>) {
    const int64_t here = words - word < kTileWords<kVectors> ? words - word : kTileWords<kVectors>;
    const float* tile = x + word * kWordColumns * kWidth;
    const uint64_t* bits = w.bitmap + begin * words + word;
    if constexpr (kLists && kVectors == 1) lists[0].read(bits, here);
    for (int64_t r = 0; r < count; ++r, bits += words, far += 64 * lines) {
      int64_t stored = 0;
      for (int64_t i = 0; i < here; ++i) stored += __builtin_popcountll(bits[i]);
      if (stored > w.nonzeros - index[r]) return false;
      const char* next = base + index[r + 1 < count ? r + 1 : 0] * size_of<kDtype>();
      for (int64_t line = 0; line < lines; ++line) {
        fetch_far(far + 64 * line);
        fetch(next + 64 * line);
      }
      const float* weights = floats<kDtype>(w, index[r], stored, buffer);
      if constexpr (kLists && kVectors == 1) {
        if (r + 1 < count) lists[(r + 1) % 2].read(bits + words, here);
        lists[r % 2].gather(weights, tile, sums + r * kWidth);
      } else {
        gather_words<kVectors>(bits, here, weights, tile, sums + r * kWidth);
      }
      index[r] += stored;
    }
  }
  const int64_t tokens = job.tokens - token < kWidth ? job.tokens - token : kWidth;
  for (int64_t r = 0; r < count; ++r) {
    if (index[r] != row_begin(w, begin + r + 1)) return false;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < count; ++r) write(job, w.scales, token + t, begin + r, sums[r * kWidth + t]);
  }
  return true;
}

template <int kDtype, int kVectors>
static bool gather_blocks(const SparseJob& job, int64_t begin, int64_t end, const float* x, int64_t token) {
  for (; begin < end; begin += kBlockRows) {
    const int64_t count = end - begin < kBlockRows ? end - begin : kBlockRows;
    if (!gather_block<kDtype, kVectors>(job, begin, count, x, token)) return false;
  }
  return true;
}

template <int kDtype>
static bool gather(const SparseJob& job, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = kBlockVectors * kLanes;
  const int64_t columns = padded(job.weight.columns);
  for (int64_t token = 0; token < job.tokens; token += kBlock) {
    const float* x = job.x + token * columns;
    const int64_t left = job.tokens - token < kBlock ? job.tokens - token : kBlock;
    bool good = false;
    switch ((left + kLanes - 1) / kLanes) {
      case 1:
        good = gather_blocks<kDtype, 1>(job, begin, end, x, token);
        break;
      case 2:
        good = gather_blocks<kDtype, 2>(job, begin, end, x, token);
        break;
      case 3:
        good = gather_blocks<kDtype, 3>(job, begin, end, x, token);
        break;
      default:
        good = gather_blocks<kDtype, 4>(job, begin, end, x, token);
    }
    if (!good) return false;
  }
  return true;
}

static bool gather_any(const SparseJob& job, int64_t begin, int64_t end) {
  switch (job.weight.dtype) {
    case PRUNE_BENCH_FLOAT32:
      return gather<PRUNE_BENCH_FLOAT32>(job, begin, end);
    case PRUNE_BENCH_BFLOAT16:
      return gather<PRUNE_BENCH_BFLOAT16>(job, begin, end);
    case PRUNE_BENCH_FLOAT16:
      return gather<PRUNE_BENCH_FLOAT16>(job, begin, end);
    default:
      return gather<PRUNE_BENCH_INT8>(job, begin, end);
  }
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
