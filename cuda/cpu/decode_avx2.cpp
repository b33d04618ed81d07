// The decode operators for AVX2.
#define PRUNE_BENCH_NAMESPACE decode_avx2
#define PRUNE_BENCH_VECTORS "vectors_avx2.h"
#include "decode_kernel.h"

namespace prune_bench {

const DecodeVariant kAvx2Decode = {PRUNE_BENCH_ISA_AVX2, decode_avx2::add_norm, decode_avx2::attend_any,
                                   decode_avx2::activate_any};

}  // namespace prune_bench
