// The decode operators for AVX-512F.
#define PRUNE_BENCH_NAMESPACE decode_avx512
#define PRUNE_BENCH_VECTORS "vectors_avx512.h"
#include "decode_kernel.h"

namespace prune_bench {

const DecodeVariant kAvx512Decode = {PRUNE_BENCH_ISA_AVX512, decode_avx512::add_norm, decode_avx512::attend_any,
                                     decode_avx512::activate_any};

}  // namespace prune_bench
