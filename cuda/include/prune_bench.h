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
#define PRUNE_BENCH_ABI 4

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

/* What a decode step of one token does between its products, on float32 states. */

/* hidden += update; out = norm(hidden): (x - mean) / sqrt(sum of (x - mean)^2 / divisor + eps) * weight + bias, with
 * the mean only where `centred` (layer norm), else without (RMS norm, arXiv 1910.07467; a sliced model's divisor is the
 * width before slicing). */
typedef struct prune_bench_add_norm_params {
  int32_t abi;
  int32_t isa;
  int32_t centred;
  float eps;
  int64_t width;
  int64_t divisor;
  float* hidden;       /* [width], in and out */
  const float* update; /* [width] or NULL */
  const float* weight; /* [width] or NULL */
  const float* bias;   /* [width] or NULL */
  float* out;          /* [width], or NULL: the sum alone */
} prune_bench_add_norm_params;

/* Where in the text a step is: the same for all blocks. */
typedef struct prune_bench_decode_place {
  int64_t position;    /* of this token: how many are cached */
  const float* cos;    /* [head_dim], rotary tables at this position (arXiv 2104.09864); both or neither */
  const float* sin;    /* [head_dim] */
  const float* bias;   /* [heads, position + 1], added to the scores; or NULL */
  int64_t bias_stride; /* from head to head */
} prune_bench_decode_place;

/* Attention of one token: its key and value go into the cache at `position`, then softmax(scale q K^T + bias) V over
 * all that are in it. Query head h reads key-value head h / (heads / kv_heads). */
typedef struct prune_bench_attend_params {
  int32_t abi;
  int32_t isa;
  int32_t threads;
  int32_t dtype; /* of the caches: float32, bfloat16 or float16 */
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t capacity;
  const prune_bench_decode_place* place;
  const float* query; /* head h at h * query_stride, and so on */
  const float* key;
  const float* value;
  int64_t query_stride;
  int64_t key_stride;
  int64_t value_stride;
  void* keys;   /* [kv_heads, capacity, head_dim] */
  void* values; /* [kv_heads, capacity, head_dim] */
  float scale;
  int32_t reserved;
  float* scratch; /* [heads, head_dim + capacity] */
  float* out;     /* [heads, head_dim] */
} prune_bench_attend_params;

enum prune_bench_activation {
  PRUNE_BENCH_RELU = 0,
  PRUNE_BENCH_SILU = 1,
  PRUNE_BENCH_GELU_TANH = 2,
  PRUNE_BENCH_GELU = 3
};

/* out = f(in), or, where `gated`, f(in[:width]) * in[width:]. */
typedef struct prune_bench_activate_params {
  int32_t abi;
  int32_t isa;
  int32_t kind; /* prune_bench_activation */
  int32_t gated;
  int64_t width;
  const float* in;
  float* out; /* [width]; may be `in` */
} prune_bench_activate_params;

enum prune_bench_step_kind {
  PRUNE_BENCH_STEP_BITMAP_MATMUL = 0,
  PRUNE_BENCH_STEP_DENSE_MATMUL = 1,
  PRUNE_BENCH_STEP_ADD_NORM = 2,
  PRUNE_BENCH_STEP_ATTEND = 3,
  PRUNE_BENCH_STEP_ACTIVATE = 4
};

typedef struct prune_bench_step {
  int32_t kind; /* prune_bench_step_kind */
  int32_t reserved;
  const void* params; /* of that kind */
} prune_bench_step;

/* CPU. Each returns a prune_bench_status; any thread count gives the same bits. `run` does steps in their order;
 * *failed is the first that did not succeed, whose status is returned, or -1. */
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_add_norm(const prune_bench_add_norm_params* params);
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_attend(const prune_bench_attend_params* params);
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_activate(const prune_bench_activate_params* params);
PRUNE_BENCH_EXPORT int32_t prune_bench_cpu_run(int32_t abi, const prune_bench_step* steps, int64_t count,
                                               int64_t* failed);

/* Both. The project's version, the ABI number, and one line in English for a status. */
PRUNE_BENCH_EXPORT const char* prune_bench_version(void);
PRUNE_BENCH_EXPORT int32_t prune_bench_abi(void);
PRUNE_BENCH_EXPORT const char* prune_bench_message(int32_t status);

#ifdef __cplusplus
}
#endif
#endif
