// Products for any processor, by the compiler's vector extension. Nothing spreads values over lanes here, so every
// number of tokens gathers.
#define PRUNE_BENCH_NAMESPACE portable
#define PRUNE_BENCH_INLINE static inline __attribute__((always_inline))
#define PRUNE_BENCH_MEMBER inline __attribute__((always_inline))

#include <stdint.h>

#include "prune_bench.h"

namespace prune_bench {
namespace portable {

constexpr int kLanes = 4;
constexpr int kDenseRows[] = {0, 4, 2, 2, 2};

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
typedef float Loose __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

PRUNE_BENCH_INLINE Vec zero() { return Vec{}; }
PRUNE_BENCH_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
PRUNE_BENCH_INLINE Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
PRUNE_BENCH_INLINE void store(float* to, Vec x) { *reinterpret_cast<Loose*>(to) = x; }
PRUNE_BENCH_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
PRUNE_BENCH_INLINE float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }

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

template <int kDtype>
PRUNE_BENCH_INLINE Vec values(const char* base, int64_t i) {
  return Vec{value<kDtype>(base, i), value<kDtype>(base, i + 1), value<kDtype>(base, i + 2),
             value<kDtype>(base, i + 3)};
}

constexpr bool kLists = false;

}  // namespace portable
}  // namespace prune_bench

#include "product_dense.h"
#include "product_gather.h"

namespace prune_bench {

const ProductVariant kPortableProduct = {PRUNE_BENCH_ISA_PORTABLE, portable::kLanes,   1, {1, 1, 1, 1}, nullptr,
                                         portable::gather_any,     portable::dense_any};

}  // namespace prune_bench
