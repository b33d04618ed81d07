// Packing, unpacking, checking and products: against plain loops in double, on every variant and thread count, and on
// bytes that nobody should trust, in buffers of exactly their size so that the address sanitizer sees a step outside.
#include <algorithm>
#include <limits>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "checks.h"
#include "matrices.h"
#include "prune_bench.h"

namespace {

constexpr int kIsas[] = {PRUNE_BENCH_ISA_BEST, PRUNE_BENCH_ISA_PORTABLE, PRUNE_BENCH_ISA_AVX2, PRUNE_BENCH_ISA_AVX512,
                         PRUNE_BENCH_ISA_AVX512_VBMI2};

bool there(int isa) { return isa == PRUNE_BENCH_ISA_BEST || prune_bench_cpu_has_isa(isa) != 0; }

std::vector<std::pair<int64_t, int64_t>> shapes() {
  return {{0, 8}, {5, 0}, {1, 1}, {3, 7}, {2, 64}, {17, 63}, {33, 65}, {70, 200}, {9, 576}, {10, 1030}};
}

void products_agree_with_plain_loops() {
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (const auto& [rows, columns] : shapes()) {
      for (const double density : {0.0, 0.5, 1.0}) {
        Matrix m(dtype, rows, columns, density, 0, 0, static_cast<unsigned>(rows * 7 + columns + dtype));
        int64_t bad = 5;
        const prune_bench_bitmap w = m.packed();
        expect(prune_bench_cpu_bitmap_validate(PRUNE_BENCH_ABI, &w, &bad) == PRUNE_BENCH_OK && bad == -1,
               m.name() + ": validate");
        for (const int64_t tokens : {0, 1, 2, 3, 5, 16, 33, 70}) {
          std::vector<double> sums, bounds;
          Product(m, tokens, 3).expected(m, sums, bounds);
          for (const int isa : kIsas) {
            if (!there(isa)) continue;
            const std::string where = m.name() + " tokens=" + std::to_string(tokens) + " isa=" + std::to_string(isa);
            Product one(m, tokens, 3), several(m, tokens, 3), dense(m, tokens, 3);
            expect(one.sparse(m, isa, 1) == PRUNE_BENCH_OK, where + ": status");
            expect(several.sparse(m, isa, 3) == PRUNE_BENCH_OK, where + ": status");
            expect(one.y == several.y, where + ": threads change the bits");
            expect(one.close(m, sums, bounds), where + ": wrong product");
            expect(dense.dense(m, isa, 2) == PRUNE_BENCH_OK && dense.close(m, sums, bounds),
                   where + ": wrong dense product");
          }
        }
      }
    }
  }
}

void groups_need_no_offsets() {
  for (const auto& [keep, group] :
       std::vector<std::pair<int, int>>{{2, 4}, {4, 8}, {1, 3}, {0, 4}, {4, 4}, {50, 100}}) {
    Matrix m(PRUNE_BENCH_FLOAT32, 21, 600, 0, keep, group, 5);
    expect(m.nonzeros == 21 * 600 / group * keep, m.name() + ": stored");
    prune_bench_bitmap w = m.packed();
    int64_t bad = 5;
    expect(prune_bench_cpu_bitmap_validate(PRUNE_BENCH_ABI, &w, &bad) == PRUNE_BENCH_OK, m.name() + ": validate");
    for (const int isa : kIsas) {
      for (const int64_t tokens : {1, 4, 20}) {
        Product product(m, tokens, 1);
        if (!there(isa)) continue;
        std::vector<double> sums, bounds;
        product.expected(m, sums, bounds);
        expect(product.sparse(m, isa, 2) == PRUNE_BENCH_OK && product.close(m, sums, bounds), m.name() + ": product");
      }
    }
    if (keep == 0 || keep == group) continue;
    // One stored column moved over the border of its group: the totals still agree.
    uint64_t* row = m.bitmap.held.get() + 10 * m.words;
    int64_t from = 0;
    while (m.mask[10 * m.columns + from] == 0) ++from;
    int64_t to = group;
    while (m.mask[10 * m.columns + to] != 0) ++to;
    row[from / 64] ^= uint64_t{1} << from % 64;
    row[to / 64] ^= uint64_t{1} << to % 64;
    expect(prune_bench_cpu_bitmap_validate(PRUNE_BENCH_ABI, &w, &bad) == PRUNE_BENCH_BAD_FORMAT && bad == 10,
           m.name() + ": a column in the wrong group");
  }
}

void packing_keeps_every_bit() {
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (const auto& [rows, columns] : shapes()) {
      Matrix m(dtype, rows, columns, 0.4, 0, 0, 11);
      // Any bits at all: NaN, infinities and -0 among them.
      std::mt19937 random(3);
      for (unsigned char& byte : m.dense) byte = static_cast<unsigned char>(random() % 3 == 0 ? random() : 0);
      prune_bench_bitmap_pack_params p = m.pack_params();
      expect(prune_bench_cpu_bitmap_scan(&p) == PRUNE_BENCH_OK, m.name() + ": scan");
      m.nonzeros = m.offsets.held[rows];
      m.values = Exact<unsigned char>(m.nonzeros * size_of(dtype));
      p.values = m.values.data();
      p.nonzeros = m.nonzeros;
      expect(prune_bench_cpu_bitmap_gather(&p) == PRUNE_BENCH_OK, m.name() + ": gather");
      std::vector<unsigned char> again(m.dense.size(), 9);
      prune_bench_bitmap_unpack_params u = {};
      u.abi = PRUNE_BENCH_ABI;
      u.threads = 3;
      u.dense_row_stride = columns;
      u.weight = m.packed();
      u.dense = again.data();
      expect(prune_bench_cpu_bitmap_unpack(&u) == PRUNE_BENCH_OK && again == m.dense, m.name() + ": unpack");
      if (m.nonzeros == 0) continue;
      p.nonzeros = m.nonzeros - 1;
      expect(prune_bench_cpu_bitmap_gather(&p) == PRUNE_BENCH_BAD_FORMAT, m.name() + ": too little room");
    }
  }
}

// Whatever the bytes: an answer, and never a step outside.
void hostile_bytes_stay_inside() {
  std::mt19937 random(17);
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    const int dtype = round % 4;
    const int64_t rows = 1 + static_cast<int64_t>(random() % 20);
    const int64_t columns = 1 + static_cast<int64_t>(random() % 300);
    const bool grouped = round % 5 == 0;
    Matrix m(dtype, rows, grouped ? (columns + 3) / 4 * 4 : columns, 0.5, grouped ? 2 : 0, grouped ? 4 : 0, random());
    for (int i = 0; i < 1 + round % 7; ++i) {
      switch (random() % 4) {
        case 0:
          m.bitmap.held[random() % m.bitmap.count] ^= uint64_t{1} << random() % 64;
          break;
        case 1:
          m.bitmap.held[random() % m.bitmap.count] = ~uint64_t{0};
          break;
        case 2:
          m.offsets.held[random() % m.offsets.count] = static_cast<int64_t>(random()) - 1000000000;
          break;
        default:
          m.offsets.held[random() % m.offsets.count] =
              round % 2 ? std::numeric_limits<int64_t>::max() - 5 : std::numeric_limits<int64_t>::min();
      }
    }
    prune_bench_bitmap w = m.packed();
    int64_t bad = 0;
    const bool good = prune_bench_cpu_bitmap_validate(PRUNE_BENCH_ABI, &w, &bad) == PRUNE_BENCH_OK;
    refused += good ? 0 : 1;
    for (const int isa : kIsas) {
      if (!there(isa)) continue;
      for (const int64_t tokens : {1, 3, 16}) {
        Product product(m, tokens, 1);
        const int status = product.sparse(m, isa, 1 + round % 3);
        expect(status == PRUNE_BENCH_OK || status == PRUNE_BENCH_BAD_FORMAT, m.name() + ": hostile product");
        expect(!good || status == PRUNE_BENCH_OK, m.name() + ": a valid matrix is refused");
      }
    }
    std::vector<unsigned char> dense(m.dense.size());
    prune_bench_bitmap_unpack_params u = {};
    u.abi = PRUNE_BENCH_ABI;
    u.dense_row_stride = m.columns;
    u.weight = w;
    u.dense = dense.data();
    const int status = prune_bench_cpu_bitmap_unpack(&u);
    expect(status == PRUNE_BENCH_OK || status == PRUNE_BENCH_BAD_FORMAT, m.name() + ": hostile unpack");
    prune_bench_bitmap_pack_params p = m.pack_params();
    p.values = m.values.data();
    p.nonzeros = m.nonzeros;
    const int packed = prune_bench_cpu_bitmap_gather(&p);
    expect(packed == PRUNE_BENCH_OK || packed == PRUNE_BENCH_BAD_FORMAT, m.name() + ": hostile gather");
  }
  expect(refused > 250, "hostile matrices are mostly refused: " + std::to_string(refused));
}

void bad_product_parameters_are_named() {
  Matrix m(PRUNE_BENCH_FLOAT32, 4, 70, 0.5, 0, 0, 1);
  Product product(m, 2, 1);
  using Params = prune_bench_bitmap_matmul_params;
  const auto status = [&](void (*spoil)(Params&)) {
    Params p = {};
    product.place(p, m);
    p.weight = m.packed();
    spoil(p);
    return prune_bench_cpu_bitmap_matmul(&p);
  };
  expect(prune_bench_cpu_bitmap_matmul(nullptr) == PRUNE_BENCH_NULL_POINTER, "null params");
  expect(status([](Params& p) { p.abi = 1; }) == PRUNE_BENCH_BAD_ABI, "abi");
  expect(status([](Params& p) { p.isa = 77; }) == PRUNE_BENCH_NO_SUCH_ISA, "isa");
  expect(status([](Params& p) { p.threads = -1; }) == PRUNE_BENCH_BAD_THREADS, "threads");
  expect(status([](Params& p) { p.x = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "x");
  expect(status([](Params& p) { p.y = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "y");
  expect(status([](Params& p) { p.weight.bitmap = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "bitmap");
  expect(status([](Params& p) { p.weight.offsets = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "offsets");
  expect(status([](Params& p) { p.weight.values = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "values");
  expect(status([](Params& p) { p.x_row_stride = 69; }) == PRUNE_BENCH_BAD_STRIDE, "rows of x overlap");
  expect(status([](Params& p) { p.y_row_stride = 3; }) == PRUNE_BENCH_BAD_STRIDE, "rows of y overlap");
  expect(status([](Params& p) { p.tokens = -1; }) == PRUNE_BENCH_BAD_SIZE, "tokens");
  expect(status([](Params& p) { p.weight.rows = int64_t{1} << 40; }) == PRUNE_BENCH_BAD_SIZE, "rows");
  expect(status([](Params& p) { p.weight.dtype = 9; }) == PRUNE_BENCH_BAD_DTYPE, "dtype");
  expect(status([](Params& p) { p.weight.dtype = PRUNE_BENCH_INT8; }) == PRUNE_BENCH_BAD_DTYPE, "no scales");
  expect(status([](Params& p) { p.weight.nonzeros = 1000; }) == PRUNE_BENCH_BAD_FORMAT, "too many values");
  expect(status([](Params& p) { p.weight.group = 4; }) == PRUNE_BENCH_BAD_SELECTION, "group does not divide");
  expect(status([](Params& p) { p.weight.group = 2, p.weight.keep = 1; }) == PRUNE_BENCH_BAD_FORMAT, "wrong count");
  expect(status([](Params& p) { p.x = reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(p.x) + 1); }) ==
             PRUNE_BENCH_MISALIGNED,
         "misaligned x");
  expect(status([](Params& p) {
           p.weight.bitmap = reinterpret_cast<const uint64_t*>(reinterpret_cast<uintptr_t>(p.weight.bitmap) + 4);
         }) == PRUNE_BENCH_MISALIGNED,
         "misaligned bitmap");
  prune_bench_bitmap w = m.packed();
  int64_t bad = 0;
  expect(prune_bench_cpu_bitmap_validate(0, &w, &bad) == PRUNE_BENCH_BAD_ABI, "validate: abi");
  int64_t astray[] = {0, 7, 0};
  prune_bench_bitmap narrow = {};
  narrow.rows = 2;
  narrow.offsets = astray;
  expect(prune_bench_cpu_bitmap_validate(PRUNE_BENCH_ABI, &narrow, &bad) == PRUNE_BENCH_BAD_FORMAT && bad == 0,
         "validate: offsets of rows without columns");
  expect(prune_bench_cpu_bitmap_validate(PRUNE_BENCH_ABI, nullptr, &bad) == PRUNE_BENCH_NULL_POINTER, "validate: null");
}

void callers_multiply_at_once() {
  Matrix m(PRUNE_BENCH_BFLOAT16, 90, 400, 0.5, 0, 0, 2);
  Product wanted(m, 3, 9);
  wanted.sparse(m, PRUNE_BENCH_ISA_BEST, 1);
  std::vector<Product> products(4, wanted);
  std::vector<std::thread> callers;
  for (Product& product : products) {
    callers.emplace_back([&product, &m] {
      for (int i = 0; i < 20; ++i) product.sparse(m, PRUNE_BENCH_ISA_BEST, 1 + i % 4);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Product& product : products) expect(product.y == wanted.y, "concurrent products");
}

}  // namespace

void products() {
  products_agree_with_plain_loops();
  groups_need_no_offsets();
  packing_keeps_every_bit();
  hostile_bytes_stay_inside();
  bad_product_parameters_are_named();
  callers_multiply_at_once();
}
