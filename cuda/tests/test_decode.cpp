// The decode operators against plain loops in double, on every variant, in buffers of exactly their size so that the
// address sanitizer sees a step outside, and with parameters that nobody should trust.
#include <algorithm>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "checks.h"
#include "matrices.h"
#include "prune_bench.h"

namespace {

constexpr int kIsas[] = {PRUNE_BENCH_ISA_BEST, PRUNE_BENCH_ISA_PORTABLE, PRUNE_BENCH_ISA_AVX2, PRUNE_BENCH_ISA_AVX512};

bool there(int isa) { return isa == PRUNE_BENCH_ISA_BEST || prune_bench_cpu_has_isa(isa) != 0; }

Exact<float> random(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Exact<float> made(count);
  for (int64_t i = 0; i < count; ++i) made.held[static_cast<std::size_t>(i)] = normal(engine);
  return made;
}

void norms_agree() {
  for (const int isa : kIsas) {
    if (!there(isa)) continue;
    for (const int64_t width : {1, 7, 16, 33, 576}) {
      for (const int centred : {0, 1}) {
        Exact<float> hidden = random(width, 1), update = random(width, 2), weight = random(width, 3);
        Exact<float> bias = random(width, 4), out(width);
        std::vector<double> sum(static_cast<std::size_t>(width));
        double mean = 0;
        for (int64_t i = 0; i < width; ++i) mean += sum[i] = double(hidden.held[i]) + update.held[i];
        mean = centred != 0 ? mean / double(width) : 0;
        double squares = 0;
        for (const double x : sum) squares += (x - mean) * (x - mean);
        const prune_bench_add_norm_params p{PRUNE_BENCH_ABI, isa,         centred,       0.01f,
                                            width,           width + 3,   hidden.data(), update.data(),
                                            weight.data(),   bias.data(), out.data()};
        expect(prune_bench_cpu_add_norm(&p) == PRUNE_BENCH_OK, "add_norm: status");
        for (int64_t i = 0; i < width; ++i) {
          const double wanted =
              (sum[i] - mean) / std::sqrt(squares / double(width + 3) + 0.01f) * weight.held[i] + bias.held[i];
          expect(std::abs(out.held[i] - wanted) < 1e-5, "add_norm: wrong value");
        }
      }
    }
  }
}

struct Attention {
  int64_t heads, kv_heads, dim, capacity;
  Exact<float> query, key, value, cos, sin, bias, scratch, out;
  Exact<unsigned char> keys, values;
  prune_bench_decode_place place{};
  prune_bench_attend_params params{};

  Attention(int dtype, int64_t h, int64_t k, int64_t d, int64_t c)
      : heads(h),
        kv_heads(k),
        dim(d),
        capacity(c),
        query(random(h * d, 1)),
        key(random(k * d, 2)),
        value(random(k * d, 3)),
        cos(random(d, 4)),
        sin(random(d, 5)),
        bias(random(h * c, 6)),
        scratch(h * (d + c)),
        out(h * d),
        keys(k * c * d * size_of(dtype)),
        values(k * c * d * size_of(dtype)) {
    place.bias = bias.data();
    place.bias_stride = c;
    if (d % 2 == 0) {
      place.cos = cos.data();
      place.sin = sin.data();
    }
    params = {PRUNE_BENCH_ABI,
              0,
              2,
              dtype,
              h,
              k,
              d,
              c,
              &place,
              query.data(),
              key.data(),
              value.data(),
              d,
              d,
              d,
              keys.data(),
              values.data(),
              0.4f,
              0,
              scratch.data(),
              out.data()};
  }

  // What the operator should have left for head `h`, from what it put into the caches.
  std::vector<double> expected(int64_t h) const {
    const int64_t shared = h / (heads / kv_heads), size = size_of(params.dtype);
    std::vector<double> turned(static_cast<std::size_t>(dim)), scores, mixed(static_cast<std::size_t>(dim));
    for (int64_t i = 0; i < dim; ++i) {
      const float* x = query.held.get() + h * dim;
      const int64_t half = dim / 2;
      const double other = place.cos == nullptr ? 0 : i < half ? -double(x[i + half]) : double(x[i - half]);
      turned[i] = place.cos == nullptr ? x[i] : x[i] * double(cos.held[i]) + other * sin.held[i];
    }
    double most = -INFINITY, total = 0;
    for (int64_t t = 0; t <= place.position; ++t) {
      double score = bias.held[h * capacity + t];
      for (int64_t i = 0; i < dim; ++i) {
        score += 0.4f * turned[i] * number(params.dtype, keys.held.get() + ((shared * capacity + t) * dim + i) * size);
      }
      scores.push_back(score);
      most = std::max(most, score);
    }
    for (double& score : scores) total += score = std::exp(score - most);
    for (int64_t t = 0; t <= place.position; ++t) {
      for (int64_t i = 0; i < dim; ++i) {
        const unsigned char* at = values.held.get() + ((shared * capacity + t) * dim + i) * size;
        mixed[i] += scores[t] / total * number(params.dtype, at);
      }
    }
    return mixed;
  }
};

void attention_agrees() {
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 1, 6}, {4, 2, 64}, {2, 2, 80}, {6, 3, 33}};
  for (const int isa : kIsas) {
    if (!there(isa)) continue;
    for (const int dtype : {PRUNE_BENCH_FLOAT32, PRUNE_BENCH_BFLOAT16, PRUNE_BENCH_FLOAT16}) {
      for (const auto& [heads, kv_heads, dim] : sizes) {
        Attention a(dtype, heads, kv_heads, dim, 21);
        a.params.isa = isa;
        for (int64_t position = 0; position < a.capacity; ++position) {
          a.place.position = position;
          for (int64_t i = 0; i < kv_heads * dim; ++i) a.key.held[i] = -a.key.held[i] * 1.1f;
          expect(prune_bench_cpu_attend(&a.params) == PRUNE_BENCH_OK, "attend: status");
          for (int64_t h = 0; h < heads; ++h) {
            const std::vector<double> wanted = a.expected(h);
            for (int64_t i = 0; i < dim; ++i) {
              expect(std::abs(a.out.held[h * dim + i] - wanted[i]) < 3e-5, "attend: wrong value");
            }
          }
        }
      }
    }
  }
}

void threads_share_long_attention() {
  Attention one(PRUNE_BENCH_BFLOAT16, 8, 4, 64, 400), several(PRUNE_BENCH_BFLOAT16, 8, 4, 64, 400);
  one.params.threads = 1;
  several.params.threads = 4;
  for (int64_t position = 0; position < 400; ++position) {
    one.place.position = several.place.position = position;
    expect(prune_bench_cpu_attend(&one.params) == PRUNE_BENCH_OK, "attend: status");
    expect(prune_bench_cpu_attend(&several.params) == PRUNE_BENCH_OK, "attend: status");
    expect(std::equal(one.out.data(), one.out.data() + one.out.count, several.out.data()),
           "attend: threads change bits");
  }
}

void activations_agree() {
  for (const int isa : kIsas) {
    if (!there(isa)) continue;
    for (const int kind : {PRUNE_BENCH_RELU, PRUNE_BENCH_SILU, PRUNE_BENCH_GELU_TANH, PRUNE_BENCH_GELU}) {
      for (const int64_t width : {1, 16, 37}) {
        Exact<float> in = random(2 * width, 9), out(width);
        in.held[0] = 90.0f;
        const prune_bench_activate_params p{PRUNE_BENCH_ABI, isa, kind, 1, width, in.data(), out.data()};
        expect(prune_bench_cpu_activate(&p) == PRUNE_BENCH_OK, "activate: status");
        for (int64_t i = 0; i < width; ++i) {
          const double x = in.held[i], root = std::sqrt(2 / M_PI);
          const double f = kind == PRUNE_BENCH_RELU   ? std::max(x, 0.0)
                           : kind == PRUNE_BENCH_SILU ? x / (1 + std::exp(-x))
                           : kind == PRUNE_BENCH_GELU ? 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)))
                                                      : 0.5 * x * (1 + std::tanh(root * (x + 0.044715 * x * x * x)));
          expect(std::abs(out.held[i] - f * in.held[width + i]) < 1e-5 * (1 + std::abs(f)), "activate: wrong value");
        }
      }
    }
  }
}

void bad_steps_are_named() {
  Attention a(PRUNE_BENCH_FLOAT32, 4, 2, 8, 5);
  const auto attend = [&](auto change) {
    Attention b(PRUNE_BENCH_FLOAT32, 4, 2, 8, 5);
    change(b);
    return prune_bench_cpu_attend(&b.params);
  };
  expect(prune_bench_cpu_attend(nullptr) == PRUNE_BENCH_NULL_POINTER, "null params");
  expect(attend([](Attention& b) { b.params.abi = 1; }) == PRUNE_BENCH_BAD_ABI, "abi");
  expect(attend([](Attention& b) { b.params.isa = 77; }) == PRUNE_BENCH_NO_SUCH_ISA, "isa");
  expect(attend([](Attention& b) { b.params.dtype = PRUNE_BENCH_INT8; }) == PRUNE_BENCH_BAD_DTYPE, "dtype");
  expect(attend([](Attention& b) { b.params.threads = -1; }) == PRUNE_BENCH_BAD_THREADS, "threads");
  expect(attend([](Attention& b) { b.params.kv_heads = 3; }) == PRUNE_BENCH_BAD_SIZE, "heads that do not divide");
  expect(attend([](Attention& b) { b.params.kv_heads = 0; }) == PRUNE_BENCH_BAD_SIZE, "no heads");
  expect(attend([](Attention& b) { b.place.position = 5; }) == PRUNE_BENCH_BAD_SIZE, "full cache");
  expect(attend([](Attention& b) { b.place.position = -1; }) == PRUNE_BENCH_BAD_SIZE, "negative position");
  expect(attend([](Attention& b) { b.place.sin = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "one table");
  expect(attend([](Attention& b) { b.place.bias_stride = 0; }) == PRUNE_BENCH_BAD_STRIDE, "bias stride");
  expect(attend([](Attention& b) { b.params.key_stride = 7; }) == PRUNE_BENCH_BAD_STRIDE, "key stride");
  expect(attend([](Attention& b) { b.params.scratch = nullptr; }) == PRUNE_BENCH_NULL_POINTER, "scratch");
  expect(attend([](Attention& b) {
           b.params.out = reinterpret_cast<float*>(reinterpret_cast<char*>(b.out.data()) + 1);
         }) == PRUNE_BENCH_MISALIGNED,
         "alignment");

  float x[4] = {}, y[4] = {};
  prune_bench_activate_params activation{PRUNE_BENCH_ABI, 0, 9, 0, 4, x, y};
  expect(prune_bench_cpu_activate(&activation) == PRUNE_BENCH_BAD_FORMAT, "unknown activation");
  activation.kind = PRUNE_BENCH_RELU;
  prune_bench_add_norm_params norm{PRUNE_BENCH_ABI, 0, 0, 0, 0, 4, x, nullptr, nullptr, nullptr, y};
  expect(prune_bench_cpu_add_norm(&norm) == PRUNE_BENCH_BAD_SIZE, "no width");

  prune_bench_step steps[] = {{PRUNE_BENCH_STEP_ACTIVATE, 0, &activation},
                              {PRUNE_BENCH_STEP_ATTEND, 0, &a.params},
                              {PRUNE_BENCH_STEP_ADD_NORM, 0, &norm}};
  int64_t failed = 7;
  expect(prune_bench_cpu_run(PRUNE_BENCH_ABI, steps, 2, &failed) == PRUNE_BENCH_OK && failed == -1, "two good steps");
  expect(prune_bench_cpu_run(PRUNE_BENCH_ABI, steps, 3, &failed) == PRUNE_BENCH_BAD_SIZE && failed == 2, "third step");
  steps[1].kind = 99;
  expect(prune_bench_cpu_run(PRUNE_BENCH_ABI, steps, 3, &failed) == PRUNE_BENCH_BAD_FORMAT && failed == 1, "kind");
  steps[1] = {PRUNE_BENCH_STEP_BITMAP_MATMUL, 0, nullptr};
  expect(prune_bench_cpu_run(PRUNE_BENCH_ABI, steps, 3, &failed) == PRUNE_BENCH_NULL_POINTER && failed == 1, "params");
  expect(prune_bench_cpu_run(PRUNE_BENCH_ABI, nullptr, 0, &failed) == PRUNE_BENCH_OK, "nothing to do");
  expect(prune_bench_cpu_run(PRUNE_BENCH_ABI, nullptr, 1, &failed) == PRUNE_BENCH_NULL_POINTER, "no steps");
  expect(prune_bench_cpu_run(1, steps, 1, &failed) == PRUNE_BENCH_BAD_ABI, "abi");
}

}  // namespace

void decode_steps() {
  norms_agree();
  attention_agrees();
  threads_share_long_attention();
  activations_agree();
  bad_steps_are_named();
}
