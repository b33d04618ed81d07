// Checks and texts that both libraries share.
#pragma once

#include "prune_bench.h"

namespace prune_bench {

// First fault of the parameters that does not depend on the device.
int32_t check(const prune_bench_obs_sweep_params* params) noexcept;
int32_t check(const prune_bench_bitmap_matmul_params* params) noexcept;
int32_t check(const prune_bench_dense_matmul_params* params) noexcept;
int32_t check(const prune_bench_bitmap_pack_params* params) noexcept;
int32_t check(const prune_bench_bitmap_unpack_params* params) noexcept;
int32_t check(const prune_bench_add_norm_params* params) noexcept;
int32_t check(const prune_bench_attend_params* params) noexcept;
int32_t check(const prune_bench_activate_params* params) noexcept;
int32_t check(const prune_bench_bitmap& weight) noexcept;  // sizes and pointers; scales only where they are set

inline bool misaligned(const void* pointer, int64_t bytes) noexcept {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) != 0;
}

// Bytes of one stored weight, 0 for an unknown dtype.
int64_t itemsize(int32_t dtype) noexcept;

}  // namespace prune_bench
