// Packing, unpacking and checking of bitmap matrices. Bits move as they are: no value is interpreted.
#include <atomic>
#include <new>

#include "buffer.h"
#include "check.h"
#include "pool.h"
#include "product.h"

namespace prune_bench {
namespace {

constexpr int64_t kRowsAtATime = 32;

int64_t pieces_of(int64_t rows) noexcept { return (rows + kRowsAtATime - 1) / kRowsAtATime; }

// Calls body(row) for the rows of a piece.
template <typename Body>
void each_row(int64_t rows, int64_t piece, const Body& body) {
  const int64_t begin = piece * kRowsAtATime;
  const int64_t end = begin + kRowsAtATime < rows ? begin + kRowsAtATime : rows;
  for (int64_t row = begin; row < end; ++row) body(row);
}

template <typename Item>
void scan_row(const prune_bench_bitmap_pack_params& p, int64_t row, int64_t words) noexcept {
  const Item* weight = static_cast<const Item*>(p.weight) + row * p.weight_row_stride;
  const uint8_t* mask = p.mask == nullptr ? nullptr : p.mask + row * p.mask_row_stride;
  int64_t stored = 0;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * kWordColumns;
    const int64_t count = p.columns - begin < kWordColumns ? p.columns - begin : kWordColumns;
    uint64_t bits = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool keep = mask != nullptr ? mask[(begin + i) * p.mask_column_stride] != 0
                                        : weight[(begin + i) * p.weight_column_stride] != 0;
      bits |= static_cast<uint64_t>(keep) << i;
    }
    p.bitmap[row * words + word] = bits;
    stored += __builtin_popcountll(bits);
  }
  p.offsets[row + 1] = stored;
}

struct ScanWork {
  const prune_bench_bitmap_pack_params* params;
  int64_t words;
};

void scan_piece(void* context, int, int64_t piece) noexcept {
  const ScanWork& work = *static_cast<const ScanWork*>(context);
  const prune_bench_bitmap_pack_params& p = *work.params;
  each_row(p.rows, piece, [&](int64_t row) {
    if (p.itemsize == 4) {
      scan_row<uint32_t>(p, row, work.words);
    } else if (p.itemsize == 2) {
      scan_row<uint16_t>(p, row, work.words);
    } else {
      scan_row<uint8_t>(p, row, work.words);
    }
  });
}

// Stored columns of a row, in order; false where there are more or fewer than the row's place holds.
template <typename Visit>
bool each_stored(const uint64_t* bits, int64_t words, int64_t columns, int64_t place, const Visit& visit) {
  for (int64_t word = 0; word < words; ++word) {
    for (uint64_t left = bits[word]; left != 0; left &= left - 1) {
      const int64_t column = word * kWordColumns + __builtin_ctzll(left);
      if (place-- == 0 || column >= columns) return false;
      visit(column);
    }
  }
  return place == 0;
}

template <typename Item>
bool gather_row(const prune_bench_bitmap_pack_params& p, int64_t row, int64_t words) noexcept {
  const Item* weight = static_cast<const Item*>(p.weight) + row * p.weight_row_stride;
  const int64_t begin = p.offsets[row];
  const int64_t end = p.offsets[row + 1];
  if (begin < 0 || end < begin || end > p.nonzeros) return false;
  Item* to = static_cast<Item*>(p.values) + begin;
  return each_stored(p.bitmap + row * words, words, p.columns, end - begin,
                     [&](int64_t column) { *to++ = weight[column * p.weight_column_stride]; });
}

struct GatherWork {
  const prune_bench_bitmap_pack_params* params;
  int64_t words;
  std::atomic<bool> bad{false};
};

void gather_piece(void* context, int, int64_t piece) noexcept {
  GatherWork& work = *static_cast<GatherWork*>(context);
  const prune_bench_bitmap_pack_params& p = *work.params;
  each_row(p.rows, piece, [&](int64_t row) {
    const bool good = p.itemsize == 4   ? gather_row<uint32_t>(p, row, work.words)
                      : p.itemsize == 2 ? gather_row<uint16_t>(p, row, work.words)
                                        : gather_row<uint8_t>(p, row, work.words);
    if (!good) work.bad.store(true, std::memory_order_relaxed);
  });
}

struct UnpackWork {
  const prune_bench_bitmap_unpack_params* params;
  int64_t words;
  std::atomic<bool> bad{false};
};

template <typename Item>
bool unpack_row(const prune_bench_bitmap_unpack_params& p, int64_t row, int64_t words) noexcept {
  const prune_bench_bitmap& w = p.weight;
  const int64_t begin = row_begin(w, row);
  const int64_t end = row_begin(w, row + 1);
  if (begin < 0 || end < begin || end > w.nonzeros) return false;
  const Item* from = static_cast<const Item*>(w.values) + begin;
  Item* to = static_cast<Item*>(p.dense) + row * p.dense_row_stride;
  for (int64_t column = 0; column < w.columns; ++column) to[column] = 0;
  return each_stored(w.bitmap + row * words, words, w.columns, end - begin,
                     [&](int64_t column) { to[column] = *from++; });
}

void unpack_piece(void* context, int, int64_t piece) noexcept {
  UnpackWork& work = *static_cast<UnpackWork*>(context);
  const prune_bench_bitmap_unpack_params& p = *work.params;
  const int64_t item = itemsize(p.weight.dtype);
  each_row(p.weight.rows, piece, [&](int64_t row) {
    const bool good = item == 4   ? unpack_row<uint32_t>(p, row, work.words)
                      : item == 2 ? unpack_row<uint16_t>(p, row, work.words)
                                  : unpack_row<uint8_t>(p, row, work.words);
    if (!good) work.bad.store(true, std::memory_order_relaxed);
  });
}

// Whether the stored columns of each group number `keep`, and none lies beyond the columns.
bool grouped(const uint64_t* bits, int64_t words, const prune_bench_bitmap& w) noexcept {
  int64_t group = 0;
  int64_t stored = 0;
  for (int64_t word = 0; word < words; ++word) {
    for (uint64_t left = bits[word]; left != 0; left &= left - 1) {
      const int64_t column = word * kWordColumns + __builtin_ctzll(left);
      if (column >= w.columns) return false;
      if (column / w.group != group) {
        // Every group in between would hold none.
        if (stored != w.keep || (w.keep > 0 && column / w.group != group + 1)) return false;
        group = column / w.group;
        stored = 0;
      }
      ++stored;
    }
  }
  const int64_t groups = w.columns / w.group;
  return w.keep == 0 ? stored == 0 : stored == w.keep && group == groups - 1;
}

int32_t validate(int32_t abi, const prune_bench_bitmap* weight, int64_t* bad_row) noexcept {
  if (weight == nullptr || bad_row == nullptr) return PRUNE_BENCH_NULL_POINTER;
  *bad_row = -1;
  if (abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  const prune_bench_bitmap& w = *weight;
  if (const int32_t status = check(w); status != PRUNE_BENCH_OK) return status;
  if (w.rows == 0) return PRUNE_BENCH_OK;
  const int64_t words = padded(w.columns) / kWordColumns;
  if (w.group == 0 && (w.offsets[0] != 0 || w.offsets[w.rows] != w.nonzeros)) return PRUNE_BENCH_BAD_FORMAT;
  for (int64_t row = 0; row < w.rows; ++row) {
    const uint64_t* bits = w.bitmap + row * words;
    bool good = false;
    if (w.group > 0) {
      good = w.columns == 0 || grouped(bits, words, w);
    } else {
      int64_t stored = 0;
      for (int64_t word = 0; word < words; ++word) stored += __builtin_popcountll(bits[word]);
      const bool beyond = w.columns % kWordColumns != 0 && bits[words - 1] >> w.columns % kWordColumns != 0;
      good = !beyond && w.offsets[row] >= 0 && w.offsets[row] <= w.nonzeros - stored &&
             w.offsets[row + 1] == w.offsets[row] + stored;
    }
    if (!good) {
      *bad_row = row;
      return PRUNE_BENCH_BAD_FORMAT;
    }
  }
  return PRUNE_BENCH_OK;
}

}  // namespace
}  // namespace prune_bench

extern "C" {

int32_t prune_bench_cpu_bitmap_scan(const prune_bench_bitmap_pack_params* params) {
  using namespace prune_bench;
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_bitmap_pack_params& p = *params;
  p.offsets[0] = 0;
  if (p.columns == 0) {
    for (int64_t row = 0; row < p.rows; ++row) p.offsets[row + 1] = 0;
    return PRUNE_BENCH_OK;
  }
  if (p.rows > 0 && p.mask == nullptr && p.weight == nullptr) return PRUNE_BENCH_NULL_POINTER;
  ScanWork work{params, padded(p.columns) / kWordColumns};
  Pool::instance().run(Pool::granted(p.threads), pieces_of(p.rows), scan_piece, &work);
  for (int64_t row = 0; row < p.rows; ++row) p.offsets[row + 1] += p.offsets[row];
  return PRUNE_BENCH_OK;
}

int32_t prune_bench_cpu_bitmap_gather(const prune_bench_bitmap_pack_params* params) {
  using namespace prune_bench;
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_bitmap_pack_params& p = *params;
  if (p.rows == 0 || p.columns == 0) return PRUNE_BENCH_OK;
  if (p.nonzeros < 0 || p.nonzeros > p.rows * p.columns) return PRUNE_BENCH_BAD_FORMAT;
  if (p.weight == nullptr || (p.nonzeros > 0 && p.values == nullptr)) return PRUNE_BENCH_NULL_POINTER;
  GatherWork work;
  work.params = params;
  work.words = padded(p.columns) / kWordColumns;
  Pool::instance().run(Pool::granted(p.threads), pieces_of(p.rows), gather_piece, &work);
  return work.bad.load(std::memory_order_relaxed) ? PRUNE_BENCH_BAD_FORMAT : PRUNE_BENCH_OK;
}

int32_t prune_bench_cpu_bitmap_unpack(const prune_bench_bitmap_unpack_params* params) {
  using namespace prune_bench;
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_bitmap_unpack_params& p = *params;
  if (p.weight.rows == 0 || p.weight.columns == 0) return PRUNE_BENCH_OK;
  UnpackWork work;
  work.params = params;
  work.words = padded(p.weight.columns) / kWordColumns;
  Pool::instance().run(Pool::granted(p.threads), pieces_of(p.weight.rows), unpack_piece, &work);
  return work.bad.load(std::memory_order_relaxed) ? PRUNE_BENCH_BAD_FORMAT : PRUNE_BENCH_OK;
}

int32_t prune_bench_cpu_bitmap_validate(int32_t abi, const prune_bench_bitmap* weight, int64_t* bad_row) {
  return prune_bench::validate(abi, weight, bad_row);
}

}  // extern "C"
