// Standalone test of both C interfaces: every variant, thread count and the emulated GPU kernel against a plain loop,
// bit for bit. Prints what failed and exits with the number of failures.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "prune_bench.h"

namespace {

struct Case {
  int64_t rows;
  int64_t columns;
  bool masked;
  int keep;
  int group;
  int levels;
  bool hostile;
  bool divided = false;  // the selection has a divisor of its own

  std::string name() const {
    char text[128];
    std::snprintf(text, sizeof text, "%lldx%lld mask=%d %d:%d levels=%d hostile=%d divided=%d",
                  static_cast<long long>(rows), static_cast<long long>(columns), masked, keep, group, levels, hostile,
                  divided);
    return text;
  }
};

struct Result {
  std::vector<float> values, errors, loss;
  std::vector<uint8_t> removed;

  explicit Result(const Case& c)
      : values(c.rows * c.columns, -7.0f),
        errors(c.rows * c.columns, -7.0f),
        loss(c.rows, -7.0f),
        removed(c.rows * c.columns, 9) {}

  bool same(const Result& other) const {
    return bits(values, other.values) && bits(errors, other.errors) && bits(loss, other.loss) &&
           removed == other.removed;
  }

 private:
  // Equal bits, except that any NaN equals any other and zero has no sign.
  static bool bits(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
    }
    return true;
  }
};

struct Inputs {
  std::vector<float> weight, factor, divisor, scale, zero;
  std::vector<uint8_t> mask;
  int64_t pitch;

  explicit Inputs(const Case& c) : pitch(c.columns + 3) {
    std::mt19937 random(static_cast<unsigned>(c.rows * 131 + c.columns * 7 + c.group + c.levels));
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(0.1f, 1.0f);
    weight.resize(c.rows * pitch);
    for (float& w : weight) w = normal(random);
    if (c.hostile) {
      const float inf = std::numeric_limits<float>::infinity();
      const float odd[] = {0.0f, -0.0f, 1e-40f, 1e30f, inf, -inf, std::nanf(""), 1.0f, 1.0f, -1.0f};
      for (std::size_t i = 0; i < weight.size(); i += 3) weight[i] = odd[i / 3 % 10];
    }
    factor.resize(c.columns * c.columns);
    for (int64_t i = 0; i < c.columns; ++i) {
      for (int64_t j = 0; j < c.columns; ++j) {
        // Below the diagonal lies what nobody may read.
        factor[i * c.columns + j] = j > i ? 0.1f * normal(random) : j == i ? uniform(random) : std::nanf("");
      }
    }
    for (int64_t j = 0; j < c.columns; ++j) divisor.push_back(uniform(random));
    for (int64_t r = 0; r < c.rows; ++r) {
      scale.push_back(0.3f * uniform(random));
      zero.push_back(std::floor(uniform(random) * static_cast<float>(c.levels)));
    }
    mask.resize(c.rows * c.columns);
    for (uint8_t& m : mask) m = static_cast<uint8_t>(random() % 2);
  }

  prune_bench_obs_sweep_params params(const Case& c, Result& out, int isa, int threads) const {
    prune_bench_obs_sweep_params p = {};
    p.abi = PRUNE_BENCH_ABI;
    p.isa = isa;
    p.threads = threads;
    p.keep = c.keep;
    p.group = c.group;
    p.levels = c.levels;
    p.rows = c.rows;
    p.columns = c.columns;
    p.weight = weight.data();
    p.weight_row_stride = pitch;
    p.weight_column_stride = 1;
    p.factor = factor.data();
    p.factor_row_stride = c.columns;
    p.factor_column_stride = 1;
    if (c.masked) {
      p.mask = mask.data();
      p.mask_row_stride = c.columns;
      p.mask_column_stride = 1;
    }
    if (c.divided) p.divisor = divisor.data();
    p.scale = scale.data();
    p.zero = zero.data();
    p.values = out.values.data();
    p.errors = out.errors.data();
    p.removed = out.removed.data();
    p.loss = out.loss.data();
    return p;
  }
};

// The definition, one weight at a time.
Result plain(const Case& c, const Inputs& in) {
  Result out(c);
  for (int64_t r = 0; r < c.rows; ++r) {
    std::vector<float> w(in.weight.begin() + r * in.pitch, in.weight.begin() + r * in.pitch + c.columns);
    std::vector<uint8_t> gone(c.columns, 0);
    if (c.masked) std::copy_n(in.mask.begin() + r * c.columns, c.columns, gone.begin());
    volatile float loss = 0.0f;
    for (int64_t j = 0; j < c.columns; ++j) {
      const float* u = in.factor.data() + j * c.columns;
      if (c.group > 0 && j % c.group == 0) {
        for (int round = 0; round < c.group - c.keep; ++round) {
          int64_t lowest = -1;
          float least = 0.0f;
          for (int64_t k = j; k < j + c.group; ++k) {
            const float d = c.divided ? in.divisor[k] : in.factor[k * c.columns + k];
            float score = (w[k] * w[k]) / (d * d);
            if (std::isnan(score)) score = std::numeric_limits<float>::infinity();
            if (!gone[k] && (lowest < 0 || score < least)) {
              lowest = k;
              least = score;
            }
          }
          gone[lowest] = 1;
        }
      }
      float q = gone[j] ? 0.0f : w[j];
      if (c.levels > 0) {
        float level = std::nearbyint(q / in.scale[r]) + in.zero[r];
        const float top = static_cast<float>(c.levels - 1);
        if (level < 0.0f) level = 0.0f;
        if (level > top) level = top;
        q = in.scale[r] * (level - in.zero[r]);
      }
      const float error = (w[j] - q) / u[j];
      const float square = error * error;
      loss = loss + square;
      for (int64_t k = j + 1; k < c.columns; ++k) {
        const float part = error * u[k];
        w[k] = w[k] - part;
      }
      out.values[r * c.columns + j] = q;
      out.errors[r * c.columns + j] = error;
    }
    std::copy(gone.begin(), gone.end(), out.removed.begin() + r * c.columns);
    out.loss[r] = 0.5f * loss;
  }
  return out;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 16}, {5, 0}, {1, 1}, {1, 17}, {3, 7}, {16, 16}, {33, 31}, {15, 64}, {50, 100}, {37, 128}, {9, 200}}) {
    all.push_back({rows, columns, true, 0, 0, 0, false});
    all.push_back({rows, columns, true, 0, 0, 4, false});
    all.push_back({rows, columns, false, 0, 0, 16, true});
    all.push_back({rows, columns, true, 0, 0, 0, true});
  }
  for (const auto& [columns, keep, group] : std::vector<std::tuple<int64_t, int, int>>{{128, 2, 4},
                                                                                       {128, 4, 8},
                                                                                       {128, 1, 4},
                                                                                       {128, 0, 4},
                                                                                       {128, 4, 4},
                                                                                       {30, 1, 3},
                                                                                       {63, 5, 9},
                                                                                       {34, 9, 17},
                                                                                       {128, 10, 32},
                                                                                       {100, 30, 50},
                                                                                       {128, 64, 128},
                                                                                       {7, 3, 7},
                                                                                       {70, 1, 1},
                                                                                       {11, 0, 1}}) {
    all.push_back({21, columns, false, keep, group, 0, false});
    all.push_back({21, columns, false, keep, group, 8, true});
    all.push_back({21, columns, false, keep, group, 0, keep % 2 == 0, true});
  }
  return all;
}

void every_variant_gives_the_plain_bits() {
  for (const Case& c : cases()) {
    const Inputs in(c);
    const Result wanted = plain(c, in);
    for (int isa = PRUNE_BENCH_ISA_BEST; isa <= PRUNE_BENCH_ISA_AVX512; ++isa) {
      if (isa != PRUNE_BENCH_ISA_BEST && !prune_bench_cpu_has_isa(isa)) continue;
      for (int threads : {1, 2, 3, 7, 0}) {
        Result got(c);
        const auto p = in.params(c, got, isa, threads);
        const int status = prune_bench_cpu_obs_sweep(&p);
        const std::string where = c.name() + " isa=" + std::to_string(isa) + " threads=" + std::to_string(threads);
        expect(status == PRUNE_BENCH_OK, where + ": " + prune_bench_message(status));
        expect(got.same(wanted), where + ": differs from the plain loop");
      }
    }
    // A thread for each CUDA thread is slow: a few rows, which still share out unevenly over the warps.
    Case few = c;
    few.rows = std::min<int64_t>(c.rows, 5);
    const Inputs few_in(few);
    Result emulated(few);
    const auto p = few_in.params(few, emulated, 0, 0);
    const int status = prune_bench_cuda_obs_sweep(&p, nullptr);
    if (few.columns > 128 && few.rows > 0) {
      expect(status == PRUNE_BENCH_TOO_WIDE, few.name() + ": the GPU kernel takes 128 columns");
      continue;
    }
    expect(status == PRUNE_BENCH_OK, few.name() + " emulated: " + prune_bench_message(status));
    expect(emulated.same(plain(few, few_in)), few.name() + " emulated: differs from the plain loop");
  }
}

void bad_parameters_are_named() {
  const Case c{4, 8, false, 0, 0, 0, false};
  const Inputs in(c);
  Result out(c);
  using Params = prune_bench_obs_sweep_params;
  const auto status = [&](void (*spoil)(Params&)) {
    Params p = in.params(c, out, 0, 1);
    spoil(p);
    return prune_bench_cpu_obs_sweep(&p);
  };
  expect(prune_bench_cpu_obs_sweep(nullptr) == PRUNE_BENCH_NULL_POINTER, "null params");
  expect(status([](Params& p) { p.abi = 0; }) == PRUNE_BENCH_BAD_ABI, "abi");
  expect(status([](Params& p) { p.weight = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "null weight");
  expect(status([](Params& p) { p.rows = -1; }) == PRUNE_BENCH_BAD_SIZE, "negative rows");
  expect(status([](Params& p) { p.columns = int64_t{1} << 40; }) == PRUNE_BENCH_BAD_SIZE, "huge columns");
  expect(status([](Params& p) { p.group = 3; }) == PRUNE_BENCH_BAD_SELECTION, "group does not divide");
  expect(status([](Params& p) { p.group = 4, p.keep = 5; }) == PRUNE_BENCH_BAD_SELECTION, "keep above group");
  expect(status([](Params& p) { p.levels = 1; }) == PRUNE_BENCH_BAD_GRID, "one level");
  expect(status([](Params& p) { p.levels = 4, p.scale = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "no scale");
  expect(status([](Params& p) { p.threads = -1; }) == PRUNE_BENCH_BAD_THREADS, "negative threads");
  expect(status([](Params& p) { p.isa = 99; }) == PRUNE_BENCH_NO_SUCH_ISA, "unknown isa");
  expect(std::strlen(prune_bench_message(12345)) > 0, "message of an unknown status");
}

// Several callers at once, each with its own data, as Python threads make them.
void callers_do_not_disturb_each_other() {
  const Case c{200, 64, false, 2, 4, 16, false};
  const Inputs in(c);
  const Result wanted = plain(c, in);
  std::vector<std::thread> callers;
  std::vector<Result> results(4, Result(c));
  for (Result& result : results) {
    callers.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        const auto p = in.params(c, result, 0, 1 + i % 4);
        prune_bench_cpu_obs_sweep(&p);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Result& result : results) expect(result.same(wanted), "concurrent callers");
}

#if !defined(__SANITIZE_THREAD__)
// A forked child has none of the parent's threads, and must not wait for them.
void a_forked_child_computes() {
  const Case c{100, 32, true, 0, 0, 0, false};
  const Inputs in(c);
  Result before(c);
  auto p = in.params(c, before, 0, 3);
  prune_bench_cpu_obs_sweep(&p);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    Result after(c);
    auto q = in.params(c, after, 0, 3);
    const bool good = prune_bench_cpu_obs_sweep(&q) == PRUNE_BENCH_OK && after.same(before);
    _exit(good ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "sweep in a forked child");
}
#else
void a_forked_child_computes() {}  // the thread sanitizer does not follow threads over a fork
#endif

}  // namespace

int main() {
  products();
  gpu_products();
  decode_steps();
  every_variant_gives_the_plain_bits();
  bad_parameters_are_named();
  callers_do_not_disturb_each_other();
  a_forked_child_computes();
  std::printf("%d checks, %d failed (version %s, %s)\n", checks, failures, prune_bench_version(),
              prune_bench_cpu_isa());
  return failures == 0 ? 0 : 1;
}
