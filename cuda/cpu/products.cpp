// The products' C interface on CPUs: checks, choice of variant and algorithm, laying out x, spreading rows over
// threads.
#include <atomic>
#include <cstring>
#include <new>

#include "buffer.h"
#include "check.h"
#include "isa.h"
#include "pool.h"
#include "product.h"

namespace prune_bench {
namespace {

constexpr int64_t kMostPieces = 32;
constexpr int64_t kPieceBytes = int64_t{1} << 16;
constexpr int64_t kChunkTokens = 256;  // laid out at a time, which bounds the copy of x

const ProductVariant* variant(int32_t isa) noexcept {
#if defined(PRUNE_BENCH_X86)
  return chosen(isa, {&kVbmi2Product, &kAvx512Product, &kAvx2Product, &kPortableProduct});
#else
  return chosen(isa, {&kPortableProduct});
#endif
}

// Rows cut into pieces of about equally many bytes; the cut does not depend on the thread count.
struct Pieces {
  int64_t count = 0;
  int64_t begin[kMostPieces + 1];

  template <typename BytesBefore>
  void cut(int64_t rows, int64_t bytes, const BytesBefore& before) noexcept {
    count = bytes / kPieceBytes < 1 ? 1 : bytes / kPieceBytes > kMostPieces ? kMostPieces : bytes / kPieceBytes;
    begin[0] = 0;
    for (int64_t piece = 1; piece < count; ++piece) {
      const int64_t wanted = bytes / count * piece;
      int64_t low = begin[piece - 1];
      int64_t high = rows;
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (before(middle) < wanted) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      begin[piece] = low;
    }
    begin[count] = rows;
  }
};

struct SparseWork {
  SparseJob job;
  Pieces pieces;
  bool (*run)(const SparseJob& job, int64_t begin, int64_t end);
  std::atomic<bool> bad{false};
};

void run_sparse(void* context, int, int64_t index) noexcept {
  SparseWork& work = *static_cast<SparseWork*>(context);
  if (!work.run(work.job, work.pieces.begin[index], work.pieces.begin[index + 1])) {
    work.bad.store(true, std::memory_order_relaxed);
  }
}

struct DenseWork {
  DenseJob job;
  Pieces pieces;
  void (*run)(const DenseJob& job, int64_t begin, int64_t end);
};

void run_dense(void* context, int, int64_t index) noexcept {
  const DenseWork& work = *static_cast<const DenseWork*>(context);
  work.run(work.job, work.pieces.begin[index], work.pieces.begin[index + 1]);
}

// x[t][c] with zeros behind the columns, interleaved as `ProductVariant` says.
void lay_rows(const float* x, int64_t stride, int64_t tokens, int64_t columns, int64_t interleave, int64_t lanes,
              float* to) noexcept {
  const int64_t pitch = padded(columns);
  const int64_t block = interleave * lanes;
  for (int64_t t = 0; t < tokens; ++t, x += stride, to += pitch) {
    if (interleave == 1) {
      if (columns > 0) std::memcpy(to, x, static_cast<std::size_t>(columns) * sizeof(float));
      std::memset(to + columns, 0, static_cast<std::size_t>(pitch - columns) * sizeof(float));
      continue;
    }
    for (int64_t c = 0; c < pitch; c += block) {
      for (int64_t v = 0; v < interleave; ++v) {
        for (int64_t i = 0; i < lanes; ++i) {
          const int64_t from = c + i * interleave + v;
          to[c + v * lanes + i] = from < columns ? x[from] : 0.0f;
        }
      }
    }
  }
}

struct Layout {
  const float* x;
  int64_t stride;
  int64_t tokens;
  int64_t columns;
  int64_t lanes;
  float* to;
};

constexpr int64_t kLayoutColumns = 64;

// Columns index * 64 and on of every block of tokens, turned into [column][token].
void lay_columns(void* context, int, int64_t index) noexcept {
  const Layout& layout = *static_cast<const Layout*>(context);
  const int64_t pitch = padded(layout.columns);
  const int64_t begin = index * kLayoutColumns;
  for (int64_t token = 0; token < layout.tokens; token += kBlockVectors * layout.lanes) {
    const int64_t left = layout.tokens - token;
    const int64_t most = kBlockVectors * layout.lanes;
    const int64_t width = left < most ? (left + layout.lanes - 1) / layout.lanes * layout.lanes : most;
    float* to = layout.to + token * pitch + begin * width;
    for (int64_t t = 0; t < width; ++t) {
      const float* from = layout.x + (token + t) * layout.stride;
      for (int64_t c = 0; c < kLayoutColumns; ++c) {
        const bool inside = t < left && begin + c < layout.columns;
        to[c * width + t] = inside ? from[begin + c] : 0.0f;
      }
    }
  }
}

int32_t bitmap_matmul(const prune_bench_bitmap_matmul_params* params) {
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_bitmap_matmul_params& p = *params;
  if (p.threads < 0) return PRUNE_BENCH_BAD_THREADS;
  const ProductVariant* chosen = variant(p.isa);
  if (chosen == nullptr) return PRUNE_BENCH_NO_SUCH_ISA;
  const prune_bench_bitmap& w = p.weight;
  if (p.tokens == 0 || w.rows == 0) return PRUNE_BENCH_OK;

  SparseWork work;
  work.job.weight = w;
  work.job.bias = p.bias;
  work.job.y_row_stride = p.y_row_stride;
  const int64_t row_bytes = padded(w.columns) / 8;
  const int64_t item = itemsize(w.dtype);
  work.pieces.cut(w.rows, w.rows * row_bytes + w.nonzeros * item, [&](int64_t r) {
    // Offsets are not trusted: beyond their range they cut badly, and the product finds them out.
    const int64_t before = row_begin(w, r);
    return r * row_bytes + (before < 0 ? 0 : before > w.nonzeros ? w.nonzeros : before) * item;
  });
  const int threads = Pool::granted(p.threads);
  const bool gathers = p.tokens >= chosen->gather_from;
  const int64_t chunk = p.tokens < kChunkTokens ? p.tokens : kChunkTokens;
  const int64_t lanes = chosen->lanes;
  const int64_t pitch = padded(w.columns);
  Buffer<float> x = allocate<float>((gathers ? (chunk + lanes - 1) / lanes * lanes : chunk) * pitch);
  if (!x) return PRUNE_BENCH_OUT_OF_MEMORY;
  work.run = gathers ? chosen->gather : chosen->expand;
  work.job.x = x.get();
  work.job.x_pitch = pitch;
  for (int64_t token = 0; token < p.tokens; token += chunk) {
    const int64_t tokens = p.tokens - token < chunk ? p.tokens - token : chunk;
    const float* from = p.x + token * p.x_row_stride;
    if (gathers) {
      Layout layout{from, p.x_row_stride, tokens, w.columns, lanes, x.get()};
      Pool::instance().run(threads, pitch / kLayoutColumns, lay_columns, &layout);
    } else {
      lay_rows(from, p.x_row_stride, tokens, w.columns, chosen->interleave[w.dtype], lanes, x.get());
    }
    work.job.tokens = tokens;
    work.job.y = p.y + token * p.y_row_stride;
    Pool::instance().run(threads, work.pieces.count, run_sparse, &work);
    if (work.bad.load(std::memory_order_relaxed)) return PRUNE_BENCH_BAD_FORMAT;
  }
  return PRUNE_BENCH_OK;
}

int32_t dense_matmul(const prune_bench_dense_matmul_params* params) {
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench_dense_matmul_params& p = *params;
  if (p.threads < 0) return PRUNE_BENCH_BAD_THREADS;
  const ProductVariant* chosen = variant(p.isa);
  if (chosen == nullptr) return PRUNE_BENCH_NO_SUCH_ISA;
  if (p.tokens == 0 || p.rows == 0) return PRUNE_BENCH_OK;

  DenseWork work;
  work.job.params = params;
  work.job.bias = p.bias;
  work.job.y_row_stride = p.y_row_stride;
  work.run = chosen->dense;
  const int64_t row_bytes = p.columns * itemsize(p.dtype);
  work.pieces.cut(p.rows, p.rows * row_bytes, [&](int64_t r) { return r * row_bytes; });
  const int64_t chunk = p.tokens < kChunkTokens ? p.tokens : kChunkTokens;
  const int64_t pitch = padded(p.columns);
  Buffer<float> x = allocate<float>(chunk * pitch);
  if (!x) return PRUNE_BENCH_OUT_OF_MEMORY;
  work.job.x = x.get();
  work.job.x_pitch = pitch;
  for (int64_t token = 0; token < p.tokens; token += chunk) {
    const int64_t tokens = p.tokens - token < chunk ? p.tokens - token : chunk;
    lay_rows(p.x + token * p.x_row_stride, p.x_row_stride, tokens, p.columns, 1, chosen->lanes, x.get());
    work.job.tokens = tokens;
    work.job.y = p.y + token * p.y_row_stride;
    Pool::instance().run(Pool::granted(p.threads), work.pieces.count, run_dense, &work);
  }
  return PRUNE_BENCH_OK;
}

}  // namespace
}  // namespace prune_bench

extern "C" {

int32_t prune_bench_cpu_bitmap_matmul(const prune_bench_bitmap_matmul_params* params) {
  try {
    return prune_bench::bitmap_matmul(params);
  } catch (const std::bad_alloc&) {
    return PRUNE_BENCH_OUT_OF_MEMORY;
  }
}

int32_t prune_bench_cpu_dense_matmul(const prune_bench_dense_matmul_params* params) {
  try {
    return prune_bench::dense_matmul(params);
  } catch (const std::bad_alloc&) {
    return PRUNE_BENCH_OUT_OF_MEMORY;
  }
}

}  // extern "C"
