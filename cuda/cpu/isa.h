// Which instruction sets this processor and build run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "prune_bench.h"

namespace prune_bench {

bool runs_here(int32_t isa) noexcept;  // of prune_bench_isa_id; false for BEST

// The first of `variants`, best first, that `isa` asks for and this processor runs; null where there is none.
template <typename Variant, std::size_t count>
const Variant* chosen(int32_t isa, const Variant* const (&variants)[count]) noexcept {
  for (const Variant* candidate : variants) {
    if ((isa == PRUNE_BENCH_ISA_BEST || isa == candidate->isa) && runs_here(candidate->isa)) return candidate;
  }
  return nullptr;
}

}  // namespace prune_bench
