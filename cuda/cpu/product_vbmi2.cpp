// Products for AVX-512 with VBMI2, which expands words: two columns of 16 bits where vpexpandd spreads one.
#define PRUNE_BENCH_NAMESPACE vbmi2
#include "product_avx512.h"

namespace prune_bench {
namespace vbmi2 {

template <int kDtype>
struct Step : WideStep<kDtype> {};

PRUNE_BENCH_INLINE __m512i expand_words(uint64_t mask, const char* base, int64_t i) {
  return _mm512_maskz_expand_epi16(static_cast<__mmask32>(mask), _mm512_loadu_si512(base + 2 * i));
}

// A bfloat16 is the upper half of a float: of each pair of columns one is shifted up and the other masked, so even
// columns come first, then the odd ones, and x is laid out likewise.
template <>
struct Step<PRUNE_BENCH_BFLOAT16> {
  static constexpr int kColumns = 2 * kLanes;
  static constexpr int kVectors = 2;
  static constexpr int kRows[] = {0, 2, 4, 4, 4};
  PRUNE_BENCH_INLINE void expand(uint64_t mask, const char* base, int64_t i, Vec (&out)[kVectors]) {
    const __m512i words = expand_words(mask, base, i);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

template <>
struct Step<PRUNE_BENCH_FLOAT16> {
  static constexpr int kColumns = 2 * kLanes;
  static constexpr int kVectors = 2;
  static constexpr int kRows[] = {0, 2, 4, 4, 4};
  PRUNE_BENCH_INLINE void expand(uint64_t mask, const char* base, int64_t i, Vec (&out)[kVectors]) {
    const __m512i words = expand_words(mask, base, i);
    out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
    out[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
  }
};

constexpr bool kLists = true;

// The columns of a mask, counted from `first`, one a byte; writes 64 bytes.
PRUNE_BENCH_INLINE void list(uint64_t mask, int first, uint8_t* to) {
  alignas(64) static constexpr uint8_t kCount[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                     16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                     32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                     48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i columns = _mm512_add_epi8(_mm512_load_si512(kCount), _mm512_set1_epi8(static_cast<char>(first)));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(static_cast<__mmask64>(mask), columns));
}

}  // namespace vbmi2
}  // namespace prune_bench

#include "product_dense.h"
#include "product_expand.h"
#include "product_gather.h"

namespace prune_bench {

const ProductVariant kVbmi2Product = {PRUNE_BENCH_ISA_AVX512_VBMI2,
                                      vbmi2::kLanes,
                                      12,
                                      {1, 2, 1, 1},
                                      vbmi2::expand_any,
                                      vbmi2::gather_any,
                                      vbmi2::dense_any};

}  // namespace prune_bench
