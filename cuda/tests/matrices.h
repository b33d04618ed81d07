// Packed matrices of every dtype in buffers of exactly their size, and products of them with what is expected.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "prune_bench.h"

inline int64_t size_of(int dtype) { return dtype == PRUNE_BENCH_FLOAT32 ? 4 : dtype == PRUNE_BENCH_INT8 ? 1 : 2; }

// The stored bits as a number.
inline double number(int dtype, const unsigned char* at) {
  if (dtype == PRUNE_BENCH_INT8) return static_cast<int8_t>(at[0]);
  if (dtype == PRUNE_BENCH_FLOAT16) {
    const unsigned half = at[0] | static_cast<unsigned>(at[1]) << 8;
    const double sign = half & 0x8000u ? -1.0 : 1.0;
    const int exponent = half >> 10 & 31u;
    const double part = half & 1023u;
    if (exponent == 31) return part == 0 ? sign * INFINITY : NAN;
    return sign * (exponent == 0 ? std::ldexp(part, -24) : std::ldexp(1024 + part, exponent - 25));
  }
  uint32_t bits = 0;
  if (dtype == PRUNE_BENCH_FLOAT32) {
    std::memcpy(&bits, at, 4);
  } else {
    bits = at[0] << 16 | static_cast<uint32_t>(at[1]) << 24;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Memory of exactly `bytes`, not a vector's capacity.
template <typename T>
struct Exact {
  std::unique_ptr<T[]> held;
  int64_t count = 0;
  explicit Exact(int64_t n) : held(new T[static_cast<std::size_t>(n)]()), count(n) {}
  T* data() { return count == 0 ? nullptr : held.get(); }
};

struct Matrix {
  int dtype;
  int64_t rows, columns, words;
  int keep = 0, group = 0;
  std::vector<unsigned char> dense;
  std::vector<uint8_t> mask;
  Exact<uint64_t> bitmap;
  Exact<int64_t> offsets;
  Exact<unsigned char> values{0};
  std::vector<float> scales;
  int64_t nonzeros = 0;

  Matrix(int dtype, int64_t rows, int64_t columns, double density, int keep, int group, unsigned seed)
      : dtype(dtype),
        rows(rows),
        columns(columns),
        words((columns + 63) / 64),
        keep(keep),
        group(group),
        dense(static_cast<std::size_t>(rows * columns * size_of(dtype))),
        mask(static_cast<std::size_t>(rows * columns)),
        bitmap(rows * words),
        offsets(rows + 1) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> uniform(0, 1);
    const int64_t item = size_of(dtype);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        bool kept = uniform(random) < density;
        if (group > 0) {
          // Exactly `keep` of the group, at a place that moves.
          kept = (c % group + group - static_cast<int64_t>(seed + r + c / group) % group) % group < keep;
        }
        mask[r * columns + c] = kept ? 7 : 0;
        unsigned char* at = dense.data() + (r * columns + c) * item;
        if (!kept) continue;
        float value = static_cast<float>(uniform(random) - 0.5);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (dtype == PRUNE_BENCH_FLOAT32) std::memcpy(at, &bits, 4);
        if (dtype == PRUNE_BENCH_BFLOAT16) std::memcpy(at, reinterpret_cast<unsigned char*>(&bits) + 2, 2);
        if (dtype == PRUNE_BENCH_FLOAT16) {
          const uint16_t half = static_cast<uint16_t>(random() % 0x7c00u) | static_cast<uint16_t>(random() & 0x8000u);
          std::memcpy(at, &half, 2);
          if (half == 0) at[0] = 1;
        }
        if (dtype == PRUNE_BENCH_INT8) at[0] = static_cast<unsigned char>(random() % 255 + 1);
      }
      scales.push_back(static_cast<float>(uniform(random) + 0.01));
    }
    prune_bench_bitmap_pack_params p = pack_params();
    expect(prune_bench_cpu_bitmap_scan(&p) == PRUNE_BENCH_OK, "scan");
    nonzeros = offsets.held[rows];
    values = Exact<unsigned char>(nonzeros * item);
    p.values = values.data();
    p.nonzeros = nonzeros;
    expect(prune_bench_cpu_bitmap_gather(&p) == PRUNE_BENCH_OK, "gather");
  }

  prune_bench_bitmap_pack_params pack_params() {
    prune_bench_bitmap_pack_params p = {};
    p.abi = PRUNE_BENCH_ABI;
    p.threads = 2;
    p.itemsize = static_cast<int32_t>(size_of(dtype));
    p.rows = rows;
    p.columns = columns;
    p.weight = dense.data();
    p.weight_row_stride = columns;
    p.weight_column_stride = 1;
    if (group > 0) {
      p.mask = mask.data();
      p.mask_row_stride = columns;
      p.mask_column_stride = 1;
    }
    p.bitmap = bitmap.data();
    p.offsets = offsets.data();
    return p;
  }

  prune_bench_bitmap packed() {
    prune_bench_bitmap w = {};
    w.dtype = dtype;
    w.keep = keep;
    w.group = group;
    w.rows = rows;
    w.columns = columns;
    w.nonzeros = nonzeros;
    w.bitmap = bitmap.data();
    w.offsets = group > 0 ? nullptr : offsets.data();
    w.values = values.data();
    w.scales = dtype == PRUNE_BENCH_INT8 ? scales.data() : nullptr;
    return w;
  }

  std::string name() const {
    return std::to_string(rows) + "x" + std::to_string(columns) + " dtype " + std::to_string(dtype) + " " +
           std::to_string(keep) + ":" + std::to_string(group);
  }
};

struct Product {
  int64_t tokens;
  std::vector<float> x, bias, y;

  Product(const Matrix& m, int64_t tokens, unsigned seed)
      : tokens(tokens), bias(m.rows, 0.25f), y(tokens * (m.rows + 3), -7.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    x.resize(tokens * (m.columns + 5));
    for (float& value : x) value = normal(random);
  }

  template <typename Params>
  void place(Params& p, const Matrix& m) {
    p.abi = PRUNE_BENCH_ABI;
    p.tokens = tokens;
    p.x = x.data();
    p.x_row_stride = m.columns + 5;
    p.bias = bias.data();
    p.y = y.data();
    p.y_row_stride = m.rows + 3;
  }

  int sparse(Matrix& m, int isa, int threads) {
    prune_bench_bitmap_matmul_params p = {};
    place(p, m);
    p.isa = isa;
    p.threads = threads;
    p.weight = m.packed();
    return prune_bench_cpu_bitmap_matmul(&p);
  }

  int gpu(Matrix& m) {
    prune_bench_bitmap_matmul_params p = {};
    place(p, m);
    p.weight = m.packed();
    return prune_bench_cuda_bitmap_matmul(&p, nullptr);
  }

  int dense(Matrix& m, int isa, int threads) {
    prune_bench_dense_matmul_params p = {};
    place(p, m);
    p.isa = isa;
    p.threads = threads;
    p.dtype = m.dtype;
    p.rows = m.rows;
    p.columns = m.columns;
    p.weight = m.dense.data();
    p.weight_row_stride = m.columns;
    p.scales = m.dtype == PRUNE_BENCH_INT8 ? m.scales.data() : nullptr;
    return prune_bench_cpu_dense_matmul(&p);
  }

  // The product in double, and how far a float32 sum of its terms may be from it.
  void expected(const Matrix& m, std::vector<double>& sums, std::vector<double>& bounds) const {
    const int64_t item = size_of(m.dtype);
    for (int64_t r = 0; r < m.rows; ++r) {
      const double scale = m.dtype == PRUNE_BENCH_INT8 ? m.scales[r] : 1.0;
      for (int64_t t = 0; t < tokens; ++t) sums.push_back(bias[r]), bounds.push_back(1e-6);
      for (int64_t c = 0; c < m.columns; ++c) {
        const double weight = scale * number(m.dtype, m.dense.data() + (r * m.columns + c) * item);
        for (int64_t t = 0; weight != 0 && t < tokens; ++t) {
          const double term = weight * x[t * (m.columns + 5) + c];
          sums[r * tokens + t] += term;
          bounds[r * tokens + t] += 1e-6 * std::fabs(term);
        }
      }
    }
  }

  // Near what is expected, and nothing written beside the rows.
  bool close(const Matrix& m, const std::vector<double>& sums, const std::vector<double>& bounds) const {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < m.rows + 3; ++r) {
        const float got = y[t * (m.rows + 3) + r];
        if (r >= m.rows ? got != -7.0f : !(std::fabs(got - sums[r * tokens + t]) <= bounds[r * tokens + t]))
          return false;
      }
    }
    return true;
  }
};
