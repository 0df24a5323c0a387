// score: out[n] = softmax(head @ hidden[n] + bias)[label] or the sigmoid of row `label`, and the aggregates of the path.
//
// A task is four rows, a quarter of the batch apart: it reads 4*E elements of hidden as four streams that go on in the next task,
// the head as float32 from cache, and writes 5 floats per row. Invariant: a logit is summed in 16 lanes over E, then as a tree,
// so a row's bits do not depend on the rows and labels beside it.
#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/simd.h"
#include "common/threads.h"

namespace tts {
namespace {

constexpr int64_t kParallelWork = 1 << 17;  // multiply-adds below which a second thread costs more than it saves
constexpr int64_t kRows = 4;                // of a task: each vector of the head is loaded once for them
constexpr int64_t kAhead = 1536;            // bytes of a stream that are on their way: 6 KB of four hide the latency of DRAM

int64_t padded(int64_t E) { return (E + kLanes - 1) / kLanes * kLanes; }

// The head as float32 rows with zeros behind.
template <class T>
TTS_CLONES void widen_head(const T* head, int64_t C, int64_t E, float* wide) {
  for (int64_t c = 0; c < C; ++c)
    for (int64_t i = 0; i < E; i += kLanes) store(wide + c * padded(E) + i, load_some(head + c * E + i, E - i));
}

// logits[r, c] = head[c] @ rows[r] for ROWS rows, `stride` apart, and LABELS labels.
template <class T, int ROWS, int LABELS>
TTS_INLINE void dots(const T* rows, int64_t stride, const float* head, int64_t E, float* logits, int64_t C) {
  F32x16 sums[ROWS][LABELS] = {};
  const auto add = [&](int64_t i, auto&& load_row) TTS_INLINE_LAMBDA {
    F32x16 weight[LABELS];
#pragma GCC unroll 2
    for (int c = 0; c < LABELS; ++c) weight[c] = load<kLanes>(head + c * padded(E) + i);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const F32x16 value = load_row(rows + r * stride + i);
#pragma GCC unroll 2
      for (int c = 0; c < LABELS; ++c) sums[r][c] += value * weight[c];
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= E; i += kLanes)
    add(i, [](const T* from) TTS_INLINE_LAMBDA {
      __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
      return load<kLanes>(from);
    });
  if (i < E) add(i, [&](const T* from) TTS_INLINE_LAMBDA { return load_some(from, E - i); });
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < LABELS; ++c) logits[r * C + c] = sum_lanes(sums[r][c]);
}

// Labels two by two: one pass over the rows for a PRM's two.
template <class T, int ROWS>
TTS_CLONES void row_logits(const T* rows, int64_t stride, const float* head, int64_t C, int64_t E, float* logits) {
  int64_t c = 0;
  for (; c + 2 <= C; c += 2) dots<T, ROWS, 2>(rows, stride, head + c * padded(E), E, logits + c, C);
  if (c < C) dots<T, ROWS, 1>(rows, stride, head + c * padded(E), E, logits + c, C);
}

double biased(const float* logits, const float* bias, int64_t c) { return logits[c] + (bias == nullptr ? 0.0 : bias[c]); }

// softmax(logits + bias)[label]. NaN or +inf among the logits, or nothing but -inf, gives NaN.
double softmax_at(const float* logits, const float* bias, int64_t C, int64_t label) {
  double most = -INFINITY, total = 0.0, chosen = 0.0;
  for (int64_t c = 0; c < C; ++c) most = std::max(most, biased(logits, bias, c));
  for (int64_t c = 0; c < C; ++c) {
    const double value = biased(logits, bias, c), weight = value == most ? 1.0 : std::exp(value - most);
    total += weight;
    if (c == label) chosen = weight;
  }
  return std::isfinite(most) ? chosen / total : NAN;
}

// (min, sum of logs, sum, count) of a path with one more step.
void advance(const float* before, float value, float* running) {
  running[0] = value < before[0] || std::isnan(value) ? value : before[0];
  running[1] = before[1] + static_cast<float>(std::log(static_cast<double>(value)));
  running[2] = before[2] + value;
  running[3] = before[3] + 1.0f;
}

struct Score {
  int64_t N, E, C, hidden_stride;
  const float *bias, *before;
  int64_t label;
  bool is_sigmoid;
  float *out, *running;
};

void finish_row(const Score& p, const float* logits, int64_t n) {
  const double value =
      p.is_sigmoid ? 1.0 / (1.0 + std::exp(-biased(logits, p.bias, p.label))) : softmax_at(logits, p.bias, p.C, p.label);
  p.out[n] = static_cast<float>(value);
  advance(p.before + n * 4, p.out[n], p.running + n * 4);
}

template <class T>
void score_rows(const Score& p, const T* hidden, const T* head) {
  const int64_t wide_floats = p.C * padded(p.E), tasks = p.N / kRows;
  const int threads = p.N * p.E * p.C > kParallelWork ? max_threads() : 1;
  auto* wide = static_cast<float*>(thread_owned<Scratch>().take((wide_floats + threads * kRows * p.C) * 4));
  widen_head(head, p.C, p.E, wide);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* logits = wide + wide_floats + thread_index() * kRows * p.C;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < tasks; ++first) {
      row_logits<T, kRows>(hidden + first * p.hidden_stride, tasks * p.hidden_stride, wide, p.C, p.E, logits);
      for (int64_t r = 0; r < kRows; ++r) finish_row(p, logits + r * p.C, first + r * tasks);
    }
  }
  for (int64_t n = kRows * tasks; n < p.N; ++n) {
    row_logits<T, 1>(hidden + n * p.hidden_stride, 0, wide, p.C, p.E, wide + wide_floats);
    finish_row(p, wide + wide_floats, n);
  }
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
    const Score p{N, E, C, hidden_stride, bias, before, label, activation == TTS_ACTIVATION_SIGMOID, out, running};
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      score_rows(p, static_cast<const T*>(hidden), static_cast<const T*>(head));
    });
  });
}
