// What the variants of the CPU products share: the job as they see it, and the table of variants.
#pragma once

#include "prune_bench.h"

namespace prune_bench {

constexpr int kDtypes = 4;        // of prune_bench_dtype
constexpr int kBlockVectors = 4;  // vectors of tokens that a gathering product takes at once
constexpr int64_t kWordColumns = 64;

// Columns of x with zeros behind them: a bitmap's last word may go beyond the matrix.
constexpr int64_t padded(int64_t columns) { return (columns + kWordColumns - 1) / kWordColumns * kWordColumns; }

// y[t, r] for some of the rows and the tokens given. x is laid out for the algorithm:
//   expand, dense: x[t][c], t * x_pitch floats apart, c up to padded(columns)
//   gather: blocks of up to kBlockVectors * lanes tokens, each [padded(columns)][tokens of the block, rounded up to
//   lanes]
struct ProductJob {
  int64_t tokens;
  const float* x;
  int64_t x_pitch;
  const float* bias;
  float* y;  // of the first token given
  int64_t y_row_stride;
};

struct SparseJob : ProductJob {
  prune_bench_bitmap weight;
};

struct DenseJob : ProductJob {
  const prune_bench_dense_matmul_params* params;
};

// Where row r's values begin.
static inline int64_t row_begin(const prune_bench_bitmap& w, int64_t r) {
  return w.group > 0 ? r * (w.columns / w.group * w.keep) : w.offsets[r];
}

// One build of the products. `expand` spreads packed values over a vector of columns, which suits few tokens; `gather`
// goes from stored weight to stored weight with a vector of tokens each, which skips the zeros' arithmetic too. Both
// return false, having read nothing outside, where bitmap, offsets and values disagree.
struct ProductVariant {
  int32_t isa;
  int lanes;
  int64_t gather_from;      // tokens from which gathering is faster
  int interleave[kDtypes];  // n: x for expand has of each n * lanes columns every n-th, from the first, then the next
                            // ones
  bool (*expand)(const SparseJob& job, int64_t begin, int64_t end);  // null where every number of tokens gathers
  bool (*gather)(const SparseJob& job, int64_t begin, int64_t end);
  void (*dense)(const DenseJob& job, int64_t begin, int64_t end);
};

extern const ProductVariant kPortableProduct;
#if defined(PRUNE_BENCH_X86)
extern const ProductVariant kAvx2Product;
extern const ProductVariant kAvx512Product;
extern const ProductVariant kVbmi2Product;
#endif

}  // namespace prune_bench
