// Products for any processor, by the compiler's vector extension. Nothing spreads values over lanes here, so every
// number of tokens gathers.
#define PRUNE_BENCH_NAMESPACE portable
#include "vectors_portable.h"

namespace prune_bench {
namespace portable {

constexpr int kDenseRows[] = {0, 4, 2, 2, 2};
constexpr bool kLists = false;

}  // namespace portable
}  // namespace prune_bench

#include "product_dense.h"
#include "product_gather.h"

namespace prune_bench {

const ProductVariant kPortableProduct = {PRUNE_BENCH_ISA_PORTABLE, portable::kLanes,   1, {1, 1, 1, 1}, nullptr,
                                         portable::gather_any,     portable::dense_any};

}  // namespace prune_bench
