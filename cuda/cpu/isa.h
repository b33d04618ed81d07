// Which instruction sets this processor and build run.
#pragma once

#include <cstdint>

namespace prune_bench {

bool runs_here(int32_t isa) noexcept;  // of prune_bench_isa_id; false for BEST

}  // namespace prune_bench
