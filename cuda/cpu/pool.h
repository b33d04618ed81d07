// The library's own threads: no OpenMP, so never a second runtime beside torch's.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace prune_bench {

class Pool {
 public:
  // Called once for each index in 0..count-1, from slot 0 (the caller) or a worker's slot, in no fixed order.
  using Task = void (*)(void* context, int slot, int64_t index) noexcept;

  // The process's pool. A forked child gets a new one, since threads do not survive a fork.
  static Pool& instance();

  // Threads as a caller asks for them; for 0, those that the machine grants this process (its affinity counts), at
  // least 1.
  static int granted(int32_t asked) noexcept;

  // Runs `task` over all indices on at most `threads` threads, the caller's included; returns when all are done.
  // Where the system refuses a thread, fewer serve. Calls from several threads take turns.
  void run(int threads, int64_t count, Task task, void* context) noexcept;

 private:
  struct Job;
  void work(int slot) noexcept;
  int grow(int workers) noexcept;

  std::mutex turn_;   // one job at a time
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  uint64_t generation_ = 0;
  int wanted_ = 0;
  int pending_ = 0;
};

}  // namespace prune_bench
