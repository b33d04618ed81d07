// Scratch memory that frees itself; a failed allocation is a null pointer, never an exception.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace prune_bench {

struct Free {
  void operator()(void* memory) const noexcept { std::free(memory); }
};

template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

// `count` elements on a cache-line boundary, or null.
template <typename T>
Buffer<T> allocate(int64_t count) noexcept {
  const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
  return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes)));
}

}  // namespace prune_bench
