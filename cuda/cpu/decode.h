// What the variants of the decode operators share: the table of variants.
#pragma once

#include "prune_bench.h"

namespace prune_bench {

// One build of what a decode step does between its products.
struct DecodeVariant {
  int32_t isa;
  void (*add_norm)(const prune_bench_add_norm_params& params);
  // One group: key-value head `head`, and the query heads that share it.
  void (*attend)(const prune_bench_attend_params& params, int64_t head);
  void (*activate)(const prune_bench_activate_params& params);
};

extern const DecodeVariant kPortableDecode;
#if defined(PRUNE_BENCH_X86)
extern const DecodeVariant kAvx2Decode;
extern const DecodeVariant kAvx512Decode;
#endif

}  // namespace prune_bench
