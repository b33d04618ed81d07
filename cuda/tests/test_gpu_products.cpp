// The GPU's product on host threads: against plain loops in double, and on bytes that nobody should trust.
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "matrices.h"
#include "prune_bench.h"

namespace {

void agrees_with_plain_loops() {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{0, 8}, {5, 0}, {1, 1}, {3, 65}, {7, 200}, {2, 2100}};
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (const auto& [rows, columns] : shapes) {
      for (const int64_t tokens : {0, 1, 3, 18}) {
        Matrix m(dtype, rows, columns, 0.5, 0, 0, static_cast<unsigned>(rows + columns + dtype));
        Product product(m, tokens, 3);
        std::vector<double> sums, bounds;
        product.expected(m, sums, bounds);
        const std::string where = m.name() + " tokens=" + std::to_string(tokens) + " on the GPU";
        expect(product.gpu(m) == PRUNE_BENCH_OK, where + ": status");
        expect(product.close(m, sums, bounds), where + ": wrong product");
      }
    }
  }
  Matrix m(PRUNE_BENCH_FLOAT16, 3, 68, 0, 2, 4, 1);
  Product product(m, 2, 3);
  std::vector<double> sums, bounds;
  product.expected(m, sums, bounds);
  expect(product.gpu(m) == PRUNE_BENCH_OK && product.close(m, sums, bounds), m.name() + " on the GPU");
}

// Whatever the bytes, never a step outside; a row that disagrees with itself is NaN.
void hostile_bytes_stay_inside() {
  std::mt19937 random(29);
  for (int round = 0; round < 12; ++round) {
    Matrix m(round % 4, 3, 1 + static_cast<int64_t>(random() % 200), 0.5, 0, 0, random());
    const int64_t row = static_cast<int64_t>(random() % 3);
    switch (round % 3) {
      case 0:
        m.bitmap.held[row * m.words] ^= 1;
        break;
      case 1:
        m.offsets.held[row] = static_cast<int64_t>(random()) - 2000000000;
        break;
      default:
        for (int64_t word = 0; word < m.words; ++word) m.bitmap.held[row * m.words + word] = ~uint64_t{0};
    }
    Product product(m, 1 + round % 2, 1);
    expect(product.gpu(m) == PRUNE_BENCH_OK, m.name() + ": hostile product on the GPU");
    expect(m.columns % 64 == 0 || std::isnan(product.y[row]), m.name() + ": a row that disagrees is NaN");
  }
}

}  // namespace

void gpu_products() {
  agrees_with_plain_loops();
  hostile_bytes_stay_inside();
}
