// Checks and texts that both libraries share.
#pragma once

#include "prune_bench.h"

namespace prune_bench {

// First fault of the parameters that does not depend on the device.
int32_t check(const prune_bench_obs_sweep_params* params) noexcept;

}  // namespace prune_bench
