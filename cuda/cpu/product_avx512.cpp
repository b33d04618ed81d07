// Products for AVX-512F.
#define PRUNE_BENCH_NAMESPACE avx512
#include "product_avx512.h"

namespace prune_bench {
namespace avx512 {

template <int kDtype>
using Step = WideStep<kDtype>;

constexpr bool kLists = false;

}  // namespace avx512
}  // namespace prune_bench

#include "product_dense.h"
#include "product_expand.h"
#include "product_gather.h"

namespace prune_bench {

const ProductVariant kAvx512Product = {PRUNE_BENCH_ISA_AVX512, avx512::kLanes,   12, {1, 1, 1, 1}, avx512::expand_any,
                                       avx512::gather_any,     avx512::dense_any};

}  // namespace prune_bench
