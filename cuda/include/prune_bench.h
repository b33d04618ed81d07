/* The C interface of both native libraries: plain structs, integer status codes, and nothing ever throws across it.
 *
 * libprune_bench_cpu exports the functions marked CPU, libprune_bench_cuda those marked CUDA; a caller loads either
 * with dlopen (Python: ctypes). Strides count elements, not bytes. */
#ifndef PRUNE_BENCH_H
#define PRUNE_BENCH_H

#include <stdint.h>

#if defined(_WIN32)
#define PRUNE_BENCH_EXPORT __declspec(dllexport)
#else
#define PRUNE_BENCH_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a meaning below changes; the loader refuses a library with another number. */
#define PRUNE_BENCH_ABI 3

enum prune_bench_status {
  PRUNE_BENCH_OK = 0,
  PRUNE_BENCH_BAD_ABI = 1,
  PRUNE_BENCH_NULL_POINTER = 2,
  PRUNE_BENCH_BAD_SIZE = 3,
  PRUNE_BENCH_BAD_SELECTION = 4,
  PRUNE_BENCH_BAD_GRID = 5,
  PRUNE_BENCH_BAD_THREADS = 6,
  PRUNE_BENCH_NO_SUCH_ISA = 7,
  PRUNE_BENCH_OUT_OF_MEMORY = 8,
  PRUNE_BENCH_TOO_WIDE = 9,
  PRUNE_BENCH_LAUNCH_FAILED = 10,
  PRUNE_BENCH_BAD_STRIDE = 11,
  PRUNE_BENCH_MISALIGNED = 12,
  PRUNE_BENCH_BAD_DTYPE = 13,
  PRUNE_BENCH_BAD_FORMAT = 14
};

enum prune_bench_isa_id {
  PRUNE_BENCH_ISA_BEST = 0,
  PRUNE_BENCH_ISA_PORTABLE = 1,
  PRUNE_BENCH_ISA_AVX2 = 2,
  PRUNE_BENCH_ISA_AVX512 = 3,
  PRUNE_BENCH_ISA_AVX512_VBMI2 = 4 /* sparse products only */
};

/* One block of columns of the optimal-brain-surgeon sweep (SparseGPT, Frantar & Alistarh 2023, algorithm 1).
 *
 * Per row, columns in order:   q = grid(removed ? 0 : w_j);  e_j = (w_j - q) / U_jj;  w_k -= e_j U_jk for k > j
 *
 * Removed are the entries of `mask`, or, with `group` > 0, at each column j that is a multiple of `group` the
 * `group - keep` of the next `group` columns with the smallest w^2 / d_j^2 of the current weights, d being `divisor`,
 * or U_jj where that is NULL: of equal ones the lowest index goes first, and a NaN ranks as infinity. With neither
 * nothing is removed. grid(x) = scale (clamp(round(x / scale) + zero, 0, levels - 1) - zero), halves rounded to even,
 * NaN kept. Products and differences are rounded separately (no fused multiply-add): every instruction set, thread
 * count and device gives the same bits. A NaN or infinity stays in its row. */
typedef struct prune_bench_obs_sweep_params {
  int32_t abi;     /* PRUNE_BENCH_ABI */
  int32_t isa;     /* prune_bench_isa_id; CPU only */
  int32_t threads; /* 0: as many as the machine grants; CPU only */
  int32_t keep;    /* 0..group */
  int32_t group;   /* 0: no selection; else a divisor of columns */
  int32_t levels;  /* 0: no grid; else 2..65536 */
  int64_t rows;
  int64_t columns;
  const float* weight; /* [rows, columns] */
  int64_t weight_row_stride;
  int64_t weight_column_stride;
  const float* factor; /* [columns, columns], upper triangle read */
  int64_t factor_row_stride;
  int64_t factor_column_stride;
  const uint8_t* mask; /* [rows, columns], non-zero: remove; or NULL */
  int64_t mask_row_stride;
  int64_t mask_column_stride;
  const float* divisor; /* [columns], of the selection by `group`; or NULL */
  const float* scale;   /* [rows], with levels */
  const float* zero;    /* [rows], with levels */
  float* values;        /* out: [rows, columns], contiguous, as all outputs */
  float* errors;        /* out: [rows, columns] */
  uint8_t* removed;     /* out: [rows, columns], 0 or 1 */
  float* loss;          /* out: [rows], half the sum of e_j^2 */
} prune_bench_obs_sweep_params;

/* CPU. Returns a prune_bench_status; outputs are undefined unless it is PRUNE_BENCH_OK. */
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_obs_sweep(const prune_bench_obs_sweep_params* params);

/* CPU. Whether this processor runs an instruction set (1 or 0), and the name of the one that BEST means here. */
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_has_isa(int32_t isa);
PRUNE_BENCH_EXPORT const char* prune_bench_cpu_isa(void);

/* CUDA. Pointers are device pointers, `stream` a cudaStream_t of the current device; returns once launched.
 * At most 128 columns. */
PRUNE_BENCH_EXPORT int32_t prune_bench_cuda_obs_sweep(const prune_bench_obs_sweep_params* params, void* stream);

/* How a packed or dense weight is stored. INT8 goes with one float32 scale a row: weight = scale * value. */
enum prune_bench_dtype {
  PRUNE_BENCH_FLOAT32 = 0,
  PRUNE_BENCH_BFLOAT16 = 1,
  PRUNE_BENCH_FLOAT16 = 2,
  PRUNE_BENCH_INT8 = 3
};

/* A sparse matrix as bitmap and packed values.
 *
 * Bit c % 64 of word c / 64 of a row says whether column c is stored; bits from `columns` on are zero. The stored
 * values of a row follow each other by column, the rows by number. Row r's values begin at offsets[r], or, with
 * `group` > 0, at r * (columns / group * keep): then each `group` consecutive columns store exactly `keep` (N:M).
 *
 * Nothing here is trusted: whatever the bytes say, an entry reads within the sizes given, and one whose bitmap,
 * offsets and values disagree returns PRUNE_BENCH_BAD_FORMAT. */
typedef struct prune_bench_bitmap {
  int32_t dtype; /* prune_bench_dtype of the values */
  int32_t keep;  /* 0..group */
  int32_t group; /* 0: offsets; else a divisor of columns */
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  int64_t nonzeros;       /* values stored */
  const uint64_t* bitmap; /* [rows, ceil(columns / 64)] */
  const int64_t* offsets; /* [rows + 1], from 0 to nonzeros; NULL with group */
  const void* values;     /* [nonzeros] */
  const float* scales;    /* [rows] with INT8, else NULL */
} prune_bench_bitmap;

/* y[t, r] = bias[r] + sum over c of weight[r, c] x[t, c], accumulated in float32. A NaN or infinity in x may or may not
 * spread through a weight that is not stored. Any thread count gives the same bits. */
typedef struct prune_bench_bitmap_matmul_params {
  int32_t abi;
  int32_t isa;     /* CPU only */
  int32_t threads; /* CPU only */
  int32_t reserved;
  prune_bench_bitmap weight;
  int64_t tokens;
  const float* x; /* [tokens, columns] */
  int64_t x_row_stride;
  const float* bias; /* [rows] or NULL */
  float* y;          /* out: [tokens, rows] */
  int64_t y_row_stride;
} prune_bench_bitmap_matmul_params;

/* The same product of a dense weight: what sparse products are measured against. */
typedef struct prune_bench_dense_matmul_params {
  int32_t abi;
  int32_t isa;
  int32_t threads;
  int32_t dtype;
  int64_t rows;
  int64_t columns;
  const void* weight; /* [rows, columns] */
  int64_t weight_row_stride;
  const float* scales; /* [rows] with INT8, else NULL */
  int64_t tokens;
  const float* x; /* [tokens, columns] */
  int64_t x_row_stride;
  const float* bias; /* [rows] or NULL */
  float* y;          /* out: [tokens, rows] */
  int64_t y_row_stride;
} prune_bench_dense_matmul_params;

/* Packing of a dense matrix in two steps, bit for bit: stored is what `mask` names, or without one every entry whose
 * bits are not all zero (so -0 and NaN are). */
typedef struct prune_bench_bitmap_pack_params {
  int32_t abi;
  int32_t threads;
  int32_t itemsize; /* 1, 2 or 4 */
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  const void* weight; /* [rows, columns]; the first step needs it only without a mask */
  int64_t weight_row_stride;
  int64_t weight_column_stride;
  const uint8_t* mask; /* [rows, columns], non-zero: store; or NULL */
  int64_t mask_row_stride;
  int64_t mask_column_stride;
  uint64_t* bitmap; /* [rows, ceil(columns / 64)]: written by the first step, read by the second */
  int64_t* offsets; /* [rows + 1]: likewise */
  int64_t nonzeros; /* second step: what there is room for */
  void* values;     /* second step, out: [nonzeros] */
} prune_bench_bitmap_pack_params;

typedef struct prune_bench_bitmap_unpack_params {
  int32_t abi;
  int32_t threads;
  int64_t dense_row_stride;
  prune_bench_bitmap weight; /* its scales are not applied and may be NULL */
  void* dense;               /* out: [rows, columns] of the values' dtype */
} prune_bench_bitmap_unpack_params;

/* CPU. Each returns a prune_bench_status. */
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_bitmap_matmul(const prune_bench_bitmap_matmul_params* params);
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_dense_matmul(const prune_bench_dense_matmul_params* params);
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_bitmap_scan(const prune_bench_bitmap_pack_params* params);
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_bitmap_gather(const prune_bench_bitmap_pack_params* params);
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_bitmap_unpack(const prune_bench_bitmap_unpack_params* params);

/* CUDA. The same product, meant for up to 16 tokens; more take a pass of the weight for every 16. Returns once
 * launched, so a row whose bitmap, offsets and values disagree is no status: its outputs are NaN. */
PRUNE_BENCH_EXPORT int32_t prune_bench_cuda_bitmap_matmul(const prune_bench_bitmap_matmul_params* params, void* stream);

/* CPU. Whether bitmap, offsets and values belong together; *bad_row is the first row where they do not, -1 where all
 * do or the fault is of no row. Reads no value. */
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_bitmap_validate(int32_t abi, const prune_bench_bitmap* weight,
                                                           int64_t* bad_row);

/* Both. The project's version, the ABI number, and one line in English for a status. */
PRUNE_BENCH_EXPORT const char* prune_bench_version(void);
PRUNE_BENCH_EXPORT int32_t prune_bench_abi(void);
PRUNE_BENCH_EXPORT const char* prune_bench_message(int32_t status);

#ifdef __cplusplus
}
#endif
#endif
