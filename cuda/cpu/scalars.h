// Single stored values to floats and back. The source that includes this sets PRUNE_BENCH_NAMESPACE and
// PRUNE_BENCH_INLINE.
#pragma once

#include <stdint.h>

#include "inline.h"
#include "prune_bench.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

PRUNE_BENCH_INLINE float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

PRUNE_BENCH_INLINE float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(half & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return from_bits(sign | rest | 0x70000000u);  // infinity and NaN
  // The product sets the exponent right, of subnormal numbers too.
  const float size = from_bits(rest) * from_bits(0x77800000u);  // 2^112
  uint32_t bits;
  __builtin_memcpy(&bits, &size, sizeof bits);
  return from_bits(sign | bits);
}

template <int kDtype>
PRUNE_BENCH_INLINE float value(const char* base, int64_t i) {
  if constexpr (kDtype == PRUNE_BENCH_FLOAT32) {
    return reinterpret_cast<const float*>(base)[i];
  } else if constexpr (kDtype == PRUNE_BENCH_INT8) {
    return static_cast<float>(reinterpret_cast<const int8_t*>(base)[i]);
  } else {
    const uint16_t bits = reinterpret_cast<const uint16_t*>(base)[i];
    return kDtype == PRUNE_BENCH_FLOAT16 ? from_half(bits) : from_bits(static_cast<uint32_t>(bits) << 16);
  }
}

PRUNE_BENCH_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

// To nearest, halves to even; NaN stays one.
PRUNE_BENCH_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

PRUNE_BENCH_INLINE uint16_t to_half(float x) {
  const uint32_t bits = bits_of(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  uint32_t size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (size >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 2^16 and more
  if (size < 0x38800000u) {
    // Below 2^-14 the sum with one half has its last bit where a subnormal half has it, and rounds there.
    return static_cast<uint16_t>(sign | (bits_of(from_bits(size) + 0.5f) - 0x3f000000u));
  }
  size += 0xc8000fffu + (size >> 13 & 1u);  // exponent 127 to 15, and the rounding
  return static_cast<uint16_t>(sign | size >> 13);
}

template <int kDtype>
PRUNE_BENCH_INLINE void put(char* base, int64_t i, float x) {
  if constexpr (kDtype == PRUNE_BENCH_FLOAT32) {
    reinterpret_cast<float*>(base)[i] = x;
  } else {
    reinterpret_cast<uint16_t*>(base)[i] = kDtype == PRUNE_BENCH_FLOAT16 ? to_half(x) : to_bfloat16(x);
  }
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
