// Enough of CUDA's device language to run a kernel on the host, for tests: one std::thread per CUDA thread, so that a
// missing barrier shows up under the thread sanitizer. Blocks run one after the other.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define PRUNE_BENCH_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulate::self().block->shared)

namespace emulate {

struct Dim {
  unsigned x = 1;
};

// The threads that shuffle together.
struct Warp {
  explicit Warp(int threads) : barrier(threads) {}
  std::barrier<> barrier;
  uint64_t exchange[32] = {};
};

struct Block {
  explicit Block(int threads) : barrier(threads) {}
  std::barrier<> barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  void* shared = nullptr;
};

struct Thread {
  Dim thread_index{0}, block_index{0}, block_size, grid_size;
  Block* block = nullptr;
};

inline Thread& self() {
  static thread_local Thread thread;
  return thread;
}

// Runs `kernel` as <<<blocks, threads, shared_bytes>>> would; `threads` is a multiple of 32.
inline void launch(unsigned blocks, unsigned threads, unsigned shared_bytes, const std::function<void()>& kernel) {
  for (unsigned b = 0; b < blocks; ++b) {
    Block block(static_cast<int>(threads));
    for (unsigned w = 0; w < threads / 32; ++w) block.warps.push_back(std::make_unique<Warp>(32));
    // Garbage, as on the device: a read before a write must not find zeros.
    std::vector<unsigned char> shared(shared_bytes, 0xa5);
    block.shared = shared.data();
    std::vector<std::thread> running;
    for (unsigned t = 0; t < threads; ++t) {
      running.emplace_back([&, b, t] {
        self() = Thread{{t}, {b}, {threads}, {blocks}, &block};
        kernel();
      });
    }
    for (std::thread& thread : running) thread.join();
  }
}

template <typename T>
T shuffle(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const unsigned index = self().thread_index.x;
  Warp& warp = *self().block->warps[index / 32];
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  warp.exchange[index % 32] = bits;
  warp.barrier.arrive_and_wait();
  bits = warp.exchange[source % 32];
  warp.barrier.arrive_and_wait();  // nobody writes again before all have read
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulate

#define threadIdx (emulate::self().thread_index)
#define blockIdx (emulate::self().block_index)
#define blockDim (emulate::self().block_size)
#define gridDim (emulate::self().grid_size)

inline void __syncthreads() { emulate::self().block->barrier.arrive_and_wait(); }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return emulate::shuffle(value, source);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int from = lane - static_cast<int>(step);
  return emulate::shuffle(value, from >= 0 ? from : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int bits) {
  return emulate::shuffle(value, static_cast<int>(threadIdx.x % 32) ^ bits);
}
inline int __any_sync(unsigned, int predicate) {
  int any = 0;
  for (int lane = 0; lane < 32; ++lane) any |= emulate::shuffle(predicate, lane);
  return any != 0;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

// Rounded one by one: the build passes -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __int_as_float(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(__half half) {
  const float sign = (half.bits & 0x8000u) != 0 ? -1.0f : 1.0f;
  const int exponent = half.bits >> 10 & 31;
  const int fraction = half.bits & 1023;
  if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}
