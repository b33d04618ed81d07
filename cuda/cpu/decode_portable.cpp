// The decode operators for any processor.
#define PRUNE_BENCH_NAMESPACE decode_portable
#define PRUNE_BENCH_VECTORS "vectors_portable.h"
#include "decode_kernel.h"

namespace prune_bench {

const DecodeVariant kPortableDecode = {PRUNE_BENCH_ISA_PORTABLE, decode_portable::add_norm, decode_portable::attend_any,
                                       decode_portable::activate_any};

}  // namespace prune_bench
