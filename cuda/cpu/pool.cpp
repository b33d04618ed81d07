#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <cfenv>

namespace prune_bench {

struct Pool::Job {
  Task task;
  void* context;
  int64_t count;
  std::atomic<int64_t> next{0};

  void drain(int slot) noexcept {
    // A caller may have flush-to-zero or another rounding mode set; results must not depend on who computes them.
    std::fenv_t before;
    const bool saved = std::fegetenv(&before) == 0 && std::fesetenv(FE_DFL_ENV) == 0;
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      task(context, slot, i);
    }
    if (saved) std::fesetenv(&before);
  }
};

Pool& Pool::instance() {
  struct Owned {
    Pool pool;
    pid_t owner = getpid();
  };
  static std::atomic<Owned*> current{nullptr};
  Owned* seen = current.load(std::memory_order_acquire);
  while (seen == nullptr || seen->owner != getpid()) {
    Owned* fresh = new Owned;
    if (current.compare_exchange_strong(seen, fresh, std::memory_order_acq_rel)) {
      // What a fork left behind is abandoned: its threads are gone and its locks may be held for ever. At exit the
      // pool is left to the system, since workers may still be waiting on it.
      return fresh->pool;
    }
    delete fresh;
  }
  return seen->pool;
}

int Pool::granted(int32_t asked) noexcept {
  if (asked != 0) return asked;
  const unsigned granted = std::thread::hardware_concurrency();
  return granted == 0 ? 1 : static_cast<int>(granted);
}

int Pool::grow(int workers) noexcept {
  try {
    while (static_cast<int>(workers_.size()) < workers) {
      const int slot = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, slot] { work(slot); });
    }
  } catch (...) {
    // The system grants no more threads: go on with those there are.
  }
  const int there = static_cast<int>(workers_.size());
  return there < workers ? there : workers;
}

void Pool::work(int slot) noexcept {
  uint64_t last = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return generation_ != last; });
    last = generation_;
    if (slot > wanted_) continue;
    Job* job = job_;
    lock.unlock();
    job->drain(slot);
    lock.lock();
    if (--pending_ == 0) done_.notify_one();
  }
}

void Pool::run(int threads, int64_t count, Task task, void* context) noexcept {
  Job job{task, context, count};
  int extra = static_cast<int>(threads < count ? threads : count) - 1;
  if (extra <= 0) {
    job.drain(0);
    return;
  }
  std::lock_guard<std::mutex> turn(turn_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    extra = grow(extra);
    job_ = &job;
    wanted_ = extra;
    pending_ = extra;
    ++generation_;
  }
  wake_.notify_all();
  job.drain(0);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return pending_ == 0; });
  job_ = nullptr;
}

}  // namespace prune_bench
