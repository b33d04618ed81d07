// Vectors for AVX2 with FMA and F16C. The source that includes this sets PRUNE_BENCH_NAMESPACE.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "inline.h"
#include "prune_bench.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

constexpr int kLanes = 8;

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

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
