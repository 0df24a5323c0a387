// score: out[n] = softmax(head @ hidden[n] + bias)[label] or the sigmoid of row `label`, and the aggregates of the path.
//
// A task is one row: it reads E elements of hidden, the head from cache and 4 floats, and writes 5 floats. Invariant: a logit is
// summed in 64 lanes over E, then as a tree, so a row's bits do not depend on the other rows.
#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/simd.h"

namespace tts {
namespace {

constexpr int64_t kParallelWork = 1 << 18;  // multiply-adds below which a second thread costs more than it saves
constexpr int kChains = 4;                  // independent sums of 16 lanes: hides the latency of dependent multiply-adds

template <class T>
TTS_CLONES float dot(const T* a, const T* b, int64_t count) {
  F32x16 acc[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= count; i += kChains * kLanes)
    for (int j = 0; j < kChains; ++j) acc[j] += load<kLanes>(a + i + j * kLanes) * load<kLanes>(b + i + j * kLanes);
  for (int j = 0; i < count; ++j, i += kLanes) acc[j] += load_some(a + i, count - i) * load_some(b + i, count - i);
  return sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

// softmax(logits)[label] in one pass with a running maximum. NaN or +inf among the logits gives NaN, -inf counts for nothing.
template <class Logit>
double softmax_at(int64_t C, int64_t label, Logit&& logit) {
  double most = -INFINITY, total = 0.0, chosen = 0.0;
  for (int64_t c = 0; c < C; ++c) {
    const double value = logit(c);
    if (c == label) chosen = value;
    if (value > most) {
      total *= std::exp(most - value);
      most = value;
    }
    if (value != -INFINITY) total += std::exp(value - most);
  }
  return std::exp(chosen - most) / total;
}

// (min, sum of logs, sum, count) of a path with one more step.
void advance(const float* before, float value, float* running) {
  running[0] = value < before[0] || std::isnan(value) ? value : before[0];
  running[1] = before[1] + static_cast<float>(std::log(static_cast<double>(value)));
  running[2] = before[2] + value;
  running[3] = before[3] + 1.0f;
}

}  // namespace
}  // namespace tts

int tts_score(int dtype, int64_t N, int64_t E, int64_t C, const void* hidden, int64_t hidden_stride, const void* head,
              const float* bias, const float* before, int64_t label, int activation, float* out, float* running) {
  using namespace tts;
  return guarded([&] {
    check_range("score: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("score: hidden", {N, std::max(hidden_stride, E)});
    check_sizes("score: head", {C, E});
    check_range("score: label", label, 0, C);
    check_range("score: activation", activation, TTS_ACTIVATION_SOFTMAX, TTS_ACTIVATION_SIGMOID + 1);
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
#pragma omp parallel for if (N * E * C > kParallelWork)
      for (int64_t n = 0; n < N; ++n) {
        const auto logit = [&](int64_t c) {
          const T* row = static_cast<const T*>(hidden) + n * hidden_stride;
          return static_cast<double>(dot(row, static_cast<const T*>(head) + c * E, E)) + (bias == nullptr ? 0.0 : bias[c]);
        };
        const double value =
            activation == TTS_ACTIVATION_SIGMOID ? 1.0 / (1.0 + std::exp(-logit(label))) : softmax_at(C, label, logit);
        out[n] = static_cast<float>(value);
        advance(before + n * 4, out[n], running + n * 4);
      }
    });
  });
}
