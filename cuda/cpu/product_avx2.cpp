// Products for AVX2 with FMA and F16C: a mask of eight columns picks a permutation from a table.
#include <immintrin.h>
#define PRUNE_BENCH_NAMESPACE avx2
#define PRUNE_BENCH_INLINE static inline __attribute__((always_inline))
#define PRUNE_BENCH_MEMBER inline __attribute__((always_inline))

#include <stdint.h>

#include "prune_bench.h"

namespace prune_bench {
namespace avx2 {

constexpr int kLanes = 8;
constexpr int kDenseRows[] = {0, 4, 4, 2, 2};

typedef __m256 Vec;

PRUNE_BENCH_INLINE Vec zero() { return _mm256_setzero_ps(); }
PRUNE_BENCH_INLINE Vec splat(float x) { return _mm256_set1_ps(x); }
PRUNE_BENCH_INLINE Vec load(const float* from) { return _mm256_loadu_ps(from); }
PRUNE_BENCH_INLINE void store(float* to, Vec x) { _mm256_storeu_ps(to, x); }
PRUNE_BENCH_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
PRUNE_BENCH_INLINE float sum(Vec x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

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
PRUNE_BENCH_INLINE Vec values(const char* base, int64_t i) {
  if constexpr (kDtype == PRUNE_BENCH_FLOAT32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(base) + i);
  } else if constexpr (kDtype == PRUNE_BENCH_INT8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(base + i));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  } else {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(base + 2 * i));
    if constexpr (kDtype == PRUNE_BENCH_FLOAT16) return _mm256_cvtph_ps(words);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
}

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
