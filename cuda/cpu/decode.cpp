// The decode operators' C interface: checks, choice of variant, heads over threads, and whole programs of operators.
#include "decode.h"

#include "check.h"
#include "isa.h"
#include "pool.h"

namespace prune_bench {
namespace {

constexpr int64_t kShared = int64_t{1} << 17;  // multiplications of an attention from which threads share it

const DecodeVariant* variant(int32_t isa) noexcept {
#if defined(PRUNE_BENCH_X86)
  return chosen(isa, {&kAvx512Decode, &kAvx2Decode, &kPortableDecode});
#else
  return chosen(isa, {&kPortableDecode});
#endif
}

struct Heads {
  const prune_bench_attend_params* params;
  const DecodeVariant* variant;
};

void run_head(void* context, int, int64_t index) noexcept {
  const Heads& heads = *static_cast<const Heads*>(context);
  heads.variant->attend(*heads.params, index);
}

}  // namespace
}  // namespace prune_bench

using prune_bench::check;

extern "C" {

int32_t prune_bench_cpu_add_norm(const prune_bench_add_norm_params* params) {
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench::DecodeVariant* chosen = prune_bench::variant(params->isa);
  if (chosen == nullptr) return PRUNE_BENCH_NO_SUCH_ISA;
  chosen->add_norm(*params);
  return PRUNE_BENCH_OK;
}

int32_t prune_bench_cpu_attend(const prune_bench_attend_params* params) {
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  if (params->threads < 0) return PRUNE_BENCH_BAD_THREADS;
  prune_bench::Heads heads{params, prune_bench::variant(params->isa)};
  if (heads.variant == nullptr) return PRUNE_BENCH_NO_SUCH_ISA;
  const bool shared = params->heads * params->head_dim * (params->place->position + 1) >= prune_bench::kShared;
  const int wanted = prune_bench::Pool::granted(params->threads);
  prune_bench::Pool::instance().run(shared ? wanted : 1, params->kv_heads, prune_bench::run_head, &heads);
  return PRUNE_BENCH_OK;
}

int32_t prune_bench_cpu_activate(const prune_bench_activate_params* params) {
  if (const int32_t status = check(params); status != PRUNE_BENCH_OK) return status;
  const prune_bench::DecodeVariant* chosen = prune_bench::variant(params->isa);
  if (chosen == nullptr) return PRUNE_BENCH_NO_SUCH_ISA;
  chosen->activate(*params);
  return PRUNE_BENCH_OK;
}

int32_t prune_bench_cpu_run(int32_t abi, const prune_bench_step* steps, int64_t count, int64_t* failed) {
  if (abi != PRUNE_BENCH_ABI) return PRUNE_BENCH_BAD_ABI;
  if (count < 0) return PRUNE_BENCH_BAD_SIZE;
  if (failed == nullptr || (count > 0 && steps == nullptr)) return PRUNE_BENCH_NULL_POINTER;
  for (int64_t i = 0; i < count; ++i) {
    int32_t status = PRUNE_BENCH_BAD_FORMAT;
    switch (steps[i].kind) {
      case PRUNE_BENCH_STEP_BITMAP_MATMUL:
        status = prune_bench_cpu_bitmap_matmul(static_cast<const prune_bench_bitmap_matmul_params*>(steps[i].params));
        break;
      case PRUNE_BENCH_STEP_DENSE_MATMUL:
        status = prune_bench_cpu_dense_matmul(static_cast<const prune_bench_dense_matmul_params*>(steps[i].params));
        break;
      case PRUNE_BENCH_STEP_ADD_NORM:
        status = prune_bench_cpu_add_norm(static_cast<const prune_bench_add_norm_params*>(steps[i].params));
        break;
      case PRUNE_BENCH_STEP_ATTEND:
        status = prune_bench_cpu_attend(static_cast<const prune_bench_attend_params*>(steps[i].params));
        break;
      case PRUNE_BENCH_STEP_ACTIVATE:
        status = prune_bench_cpu_activate(static_cast<const prune_bench_activate_params*>(steps[i].params));
        break;
      default:
        break;
    }
    if (status != PRUNE_BENCH_OK) {
      *failed = i;
      return status;
    }
  }
  *failed = -1;
  return PRUNE_BENCH_OK;
}

}  // extern "C"
