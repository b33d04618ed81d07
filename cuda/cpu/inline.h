// How functions of a variant are marked: they must not be shared with another variant by the linker.
#pragma once

#define PRUNE_BENCH_INLINE static inline __attribute__((always_inline))
#define PRUNE_BENCH_MEMBER inline __attribute__((always_inline))
