// What a decode step does between its products, written once. Each variant names its vectors_*.h in PRUNE_BENCH_VECTORS
// and is compiled with its own instruction-set flags. Nothing here may call an inline function of the standard library:
// the linker keeps one copy of those, which could be one that this processor cannot run.
#pragma once

#include <stdint.h>

#include PRUNE_BENCH_VECTORS
#include "decode.h"
#include "scalars.h"

namespace prune_bench {
namespace PRUNE_BENCH_NAMESPACE {

typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));

// The last values of a row, fewer than a vector has, with `fill` behind them.
PRUNE_BENCH_INLINE Vec load_part(const float* from, int64_t count, float fill) {
  float part[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) part[i] = i < count ? from[i] : fill;
  return load(part);
}

PRUNE_BENCH_INLINE void store_part(float* to, int64_t count, Vec x) {
  float part[kLanes];
  store(part, x);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

template <typename Body>
PRUNE_BENCH_INLINE float summed(int64_t count, const float* from, float fill, const Body& body) {
  Vec total = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) total = body(total, load(from + i));
  if (i < count) total = body(total, load_part(from + i, count - i, fill));
  return sum(total);
}

// e^x within 2 units in the last place where it is a normal float; x is cut to [-87.3, 88.3], NaN stays NaN.
// 2^n e^r with r = x - n ln 2, |r| <= ln 2 / 2, and e^r's polynomial of degree 6.
PRUNE_BENCH_INLINE Vec exponential(Vec x) {
  const Vec low = splat(-87.3f), high = splat(88.3f), magic = splat(12582912.0f);  // 1.5 * 2^23: rounds, and holds n
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec shifted = fma(x, splat(1.44269504f), magic);
  const Vec n = shifted - magic;
  Vec r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  Vec p = splat(1.0f / 720.0f);
  p = fma(p, r, splat(1.0f / 120.0f));
  p = fma(p, r, splat(1.0f / 24.0f));
  p = fma(p, r, splat(1.0f / 6.0f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  Ints power;
  __builtin_memcpy(&power, &shifted, sizeof power);
  power = (power + (127 - 0x4b400000)) << 23;
  Vec scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

void add_norm(const prune_bench_add_norm_params& p) {
  const int64_t width = p.width;
  if (p.update != nullptr) {
    for (int64_t i = 0; i < width; ++i) p.hidden[i] += p.update[i];
  }
  if (p.out == nullptr) return;
  float mean = 0.0f;
  if (p.centred != 0) {
    mean = summed(width, p.hidden, 0.0f, [](Vec total, Vec x) { return total + x; }) / static_cast<float>(width);
  }
  const Vec middle = splat(mean);
  const float squares = summed(width, p.hidden, mean, [&](Vec total, Vec x) {
    const Vec apart = x - middle;
    return fma(apart, apart, total);
  });
  const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(p.divisor) + p.eps);
  for (int64_t i = 0; i < width; ++i) {
    float x = (p.hidden[i] - mean) * scale;
    if (p.weight != nullptr) x *= p.weight[i];
    if (p.bias != nullptr) x += p.bias[i];
    p.out[i] = x;
  }
}

// The first half of a head turns against its second (arXiv 2104.09864), or nothing does without tables.
PRUNE_BENCH_INLINE float turned(const float* x, int64_t i, int64_t half, const prune_bench_decode_place& at) {
  if (at.cos == nullptr) return x[i];
  return i < half ? x[i] * at.cos[i] - x[i + half] * at.sin[i] : x[i] * at.cos[i] + x[i - half] * at.sin[i];
}

template <int kDtype>
PRUNE_BENCH_INLINE float dot(const float* query, const char* key, int64_t count) {
  Vec total = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) total = fma(load(query + i), values<kDtype>(key, i), total);
  float rest = 0.0f;
  for (; i < count; ++i) rest += query[i] * value<kDtype>(key, i);
  return sum(total) + rest;
}

// out = sum over t of weights[t] * rows[t], `kVectors` vectors of columns of it.
template <int kDtype, int kVectors>
PRUNE_BENCH_INLINE void mix(const float* weights, const char* rows, int64_t count, int64_t pitch, float* out) {
  Vec total[kVectors];
  for (int v = 0; v < kVectors; ++v) total[v] = zero();
  for (int64_t t = 0; t < count; ++t) {
    const Vec weight = splat(weights[t]);
    for (int v = 0; v < kVectors; ++v) total[v] = fma(weight, values<kDtype>(rows, t * pitch + v * kLanes), total[v]);
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, total[v]);
}

template <int kDtype>
void attend(const prune_bench_attend_params& p, int64_t head) {
  constexpr int64_t kBytes = kDtype == PRUNE_BENCH_FLOAT32 ? 4 : 2;
  const prune_bench_decode_place& at = *p.place;
  const int64_t dim = p.head_dim, half = dim / 2, count = at.position + 1, group = p.heads / p.kv_heads;
  char* keys = static_cast<char*>(p.keys) + head * p.capacity * dim * kBytes;
  char* kept = static_cast<char*>(p.values) + head * p.capacity * dim * kBytes;
  const float* key = p.key + head * p.key_stride;
  const float* value_row = p.value + head * p.value_stride;
  for (int64_t i = 0; i < dim; ++i) {
    put<kDtype>(keys, at.position * dim + i, turned(key, i, half, at));
    put<kDtype>(kept, at.position * dim + i, value_row[i]);
  }
  for (int64_t h = head * group; h < (head + 1) * group; ++h) {
    float* query = p.scratch + h * (dim + p.capacity);
    float* scores = query + dim;
    const float* raw = p.query + h * p.query_stride;
    for (int64_t i = 0; i < dim; ++i) query[i] = turned(raw, i, half, at) * p.scale;
    const float* bias = at.bias == nullptr ? nullptr : at.bias + h * at.bias_stride;
    float most = -__builtin_inff();
    for (int64_t t = 0; t < count; ++t) {
      float score = dot<kDtype>(query, keys + t * dim * kBytes, dim);
      if (bias != nullptr) score += bias[t];
      scores[t] = score;
      // a NaN is passed over here and makes the sum of the weights, and so the result, NaN
      if (score > most) most = score;
    }
    const Vec top = splat(most);
    Vec totals = zero();
    int64_t t = 0;
    for (; t + kLanes <= count; t += kLanes) {
      const Vec weight = exponential(load(scores + t) - top);
      store(scores + t, weight);
      totals = totals + weight;
    }
    float total = sum(totals);
    if (t < count) {
      store_part(scores + t, count - t, exponential(load_part(scores + t, count - t, most) - top));
      for (; t < count; ++t) total += scores[t];
    }
    const float share = 1.0f / total;
    for (t = 0; t < count; ++t) scores[t] *= share;
    float* out = p.out + h * dim;
    int64_t i = 0;
    for (; i + 4 * kLanes <= dim; i += 4 * kLanes) mix<kDtype, 4>(scores, kept + i * kBytes, count, dim, out + i);
    for (; i + kLanes <= dim; i += kLanes) mix<kDtype, 1>(scores, kept + i * kBytes, count, dim, out + i);
    for (; i < dim; ++i) {
      float mixed = 0.0f;
      for (t = 0; t < count; ++t) mixed += scores[t] * value<kDtype>(kept, t * dim + i);
      out[i] = mixed;
    }
  }
}

void attend_any(const prune_bench_attend_params& p, int64_t head) {
  switch (p.dtype) {
    case PRUNE_BENCH_FLOAT32:
      return attend<PRUNE_BENCH_FLOAT32>(p, head);
    case PRUNE_BENCH_BFLOAT16:
      return attend<PRUNE_BENCH_BFLOAT16>(p, head);
    default:
      return attend<PRUNE_BENCH_FLOAT16>(p, head);
  }
}

PRUNE_BENCH_INLINE Vec sigmoid_times(Vec x, Vec slope) { return x / (splat(1.0f) + exponential(zero() - slope)); }

template <int kKind>
PRUNE_BENCH_INLINE Vec activated(Vec x) {
  if constexpr (kKind == PRUNE_BENCH_RELU) {
    return x < zero() ? zero() : x;
  } else if constexpr (kKind == PRUNE_BENCH_SILU) {
    return sigmoid_times(x, x);
  } else if constexpr (kKind == PRUNE_BENCH_GELU_TANH) {
    // (1 + tanh u) / 2 is the sigmoid of 2 u, with u = sqrt(2 / pi) (x + 0.044715 x^3)
    const Vec cubic = fma(splat(0.044715f) * x * x, x, x);
    return sigmoid_times(x, splat(1.59576912f) * cubic);
  } else {
    float lane[kLanes];
    store(lane, x);
    for (int i = 0; i < kLanes; ++i) lane[i] = 0.5f * lane[i] * (1.0f + __builtin_erff(lane[i] * 0.707106781f));
    return load(lane);
  }
}

template <int kKind>
void activate(const prune_bench_activate_params& p) {
  const float* up = p.gated != 0 ? p.in + p.width : nullptr;
  int64_t i = 0;
  for (; i + kLanes <= p.width; i += kLanes) {
    Vec y = activated<kKind>(load(p.in + i));
    if (up != nullptr) y = y * load(up + i);
    store(p.out + i, y);
  }
  if (i == p.width) return;
  const int64_t rest = p.width - i;
  Vec y = activated<kKind>(load_part(p.in + i, rest, 0.0f));
  if (up != nullptr) y = y * load_part(up + i, rest, 0.0f);
  store_part(p.out + i, rest, y);
}

void activate_any(const prune_bench_activate_params& p) {
  switch (p.kind) {
    case PRUNE_BENCH_RELU:
      return activate<PRUNE_BENCH_RELU>(p);
    case PRUNE_BENCH_SILU:
      return activate<PRUNE_BENCH_SILU>(p);
    case PRUNE_BENCH_GELU_TANH:
      return activate<PRUNE_BENCH_GELU_TANH>(p);
    default:
      return activate<PRUNE_BENCH_GELU>(p);
  }
}

}  // namespace PRUNE_BENCH_NAMESPACE
}  // namespace prune_bench
