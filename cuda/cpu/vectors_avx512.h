// Vectors for AVX-512F. The source that includes this sets PRUNE_BENCH_NAMESPACE.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "inline.h"
#include "prune_bench.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

constexpr int kLanes = 16;

typedef __m512 Vec;

PRUNE_BENCH_INLINE Vec zero() { return _mm512_setzero_ps(); }
PRUNE_BENCH_INLINE Vec splat(float x) { return _mm512_set1_ps(x); }
PRUNE_BENCH_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }
PRUNE_BENCH_INLINE void store(float* to, Vec x) { _mm512_storeu_ps(to, x); }
PRUNE_BENCH_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
PRUNE_BENCH_INLINE float sum(Vec x) { return _mm512_reduce_add_ps(x); }

PRUNE_BENCH_INLINE Vec from_bfloat16(__m256i words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

template <int kDtype>
PRUNE_BENCH_INLINE Vec values(const char* base, int64_t i) {
  if constexpr (kDtype == PRUNE_BENCH_FLOAT32) {
    return _mm512_loadu_ps(reinterpret_cast<const float*>(base) + i);
  } else if constexpr (kDtype == PRUNE_BENCH_INT8) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(base + i));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  } else {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(base + 2 * i));
    if constexpr (kDtype == PRUNE_BENCH_FLOAT16) return _mm512_cvtph_ps(words);
    return from_bfloat16(words);
  }
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
