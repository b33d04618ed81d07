// Products for AVX2 with FMA and F16C: a mask of eight columns picks a permutation from a table.
#define PRUNE_BENCH_NAMESPACE avx2
#include "vectors_avx2.h"

namespace prune_bench {
namespace avx2 {

constexpr int kDenseRows[] = {0, 4, 4, 2, 2};

// lanes[mask]: for each lane the packed value that belongs there, or 0x80 where the mask has no bit.
struct Table {
  uint8_t lanes[256][8];
  constexpr Table() : lanes() {
    for (int mask = 0; mask < 256; ++mask) {
      int next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        lanes[mask][lane] = static_cast<uint8_t>((mask >> lane & 1) != 0 ? next++ : 0x80);
      }
    }
  }
};
alignas(64) constexpr Table kTable;

template <int kDtype>
struct Step {
  static constexpr int kColumns = kLanes;
  static constexpr int kVectors = 1;
  static constexpr int kRows[] = {0, 2, 2, 2, 2};
  PRUNE_BENCH_INLINE void expand(uint64_t mask, const char* base, int64_t i, Vec (&out)[kVectors]) {
    const __m128i entry = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTable.lanes[mask]));
    const __m256i lanes = _mm256_cvtepi8_epi32(entry);
    const __m256 spread = _mm256_permutevar8x32_ps(values<kDtype>(base, i), lanes);
    out[0] = _mm256_blendv_ps(spread, _mm256_setzero_ps(), _mm256_castsi256_ps(lanes));
  }
};

constexpr bool kLists = false;

}  // namespace avx2
}  // namespace prune_bench

#include "product_dense.h"
#include "product_expand.h"
#include "product_gather.h"

namespace prune_bench {

const ProductVariant kAvx2Product = {PRUNE_BENCH_ISA_AVX2, avx2::kLanes,   7, {1, 1, 1, 1}, avx2::expand_any,
                                     avx2::gather_any,     avx2::dense_any};

}  // namespace prune_bench
