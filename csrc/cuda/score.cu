// score on the GPU: one block of threads per step.
//
// It reads E elements of hidden once for two labels, 16 bytes a thread where the row is aligned, the head's rows from cache, and
// writes 5 floats. Invariant: a logit is summed by thread, then as a tree, so a row's bits do not depend on the rows beside it.
#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "cuda/launch.h"

namespace tts {
namespace {

struct Score {
  int64_t E, C, hidden_stride;
  const float *bias, *before;
  int64_t label;
  bool is_sigmoid, is_aligned;
  float *out, *running;
};

template <class T>
struct alignas(16) Vector {
  T at[16 / sizeof(T)];
};

// What this thread adds to head row c @ hidden row and to that of label c + 1.
template <class T>
__device__ void add_products(const Score& p, const T* hidden, const T* head, bool has_second, float* sums) {
  constexpr int kWidth = 16 / sizeof(T);
  const T* second = has_second ? head + p.E : head;
  int64_t begin = 0;
  if (p.is_aligned) {
    for (int64_t i = threadIdx.x * kWidth; i + kWidth <= p.E; i += kThreads * kWidth) {
      const auto h = *reinterpret_cast<const Vector<T>*>(hidden + i), a = *reinterpret_cast<const Vector<T>*>(head + i);
      const auto b = *reinterpret_cast<const Vector<T>*>(second + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sums[0] += to_float(h.at[j]) * to_float(a.at[j]);
        sums[1] += to_float(h.at[j]) * to_float(b.at[j]);
      }
    }
    begin = p.E / kWidth * kWidth;
  }
  for (int64_t i = begin + threadIdx.x; i < p.E; i += kThreads) {
    sums[0] += to_float(hidden[i]) * to_float(head[i]);
    sums[1] += to_float(hidden[i]) * to_float(second[i]);
  }
}

// The softmax over labels so far, as (largest logit, sum of weights, weight of the chosen label).
struct Softmax {
  double most = -INFINITY, total = 0.0, chosen = 0.0;

  __device__ void add(double logit, bool is_chosen) {
    const double higher = logit > most ? logit : most;
    const double decay = higher == most ? 1.0 : exp(most - higher), weight = logit == higher ? 1.0 : exp(logit - higher);
    total = total * decay + weight;
    chosen = chosen * decay + (is_chosen ? weight : 0.0);
    most = higher;
  }
  // NaN or +inf among the logits, or nothing but -inf, gives NaN.
  __device__ double value() const { return most < INFINITY && most > -INFINITY ? chosen / total : NAN; }
};

template <class T>
__global__ void __launch_bounds__(kThreads) score_kernel(Score p, const T* hidden, const T* head) {
  __shared__ float shared[kThreads];
  const int64_t n = blockIdx.x;
  Softmax softmax;
  double chosen_logit = 0.0;
  for (int64_t c = 0; c < p.C; c += 2) {
    float sums[2] = {};
    add_products(p, hidden + n * p.hidden_stride, head + c * p.E, c + 1 < p.C, sums);
    for (int64_t i = c; i < c + 2 && i < p.C; ++i) {
      const double logit = sum_block(sums[i - c], shared) + (p.bias == nullptr ? 0.0 : p.bias[i]);
      softmax.add(logit, i == p.label);
      if (i == p.label) chosen_logit = logit;
    }
  }
  if (threadIdx.x != 0) return;
  const auto value = static_cast<float>(p.is_sigmoid ? 1.0 / (1.0 + exp(-chosen_logit)) : softmax.value());
  const float* before = p.before + n * 4;
  float* running = p.running + n * 4;
  p.out[n] = value;
  running[0] = value < before[0] || value != value ? value : before[0];
  running[1] = before[1] + static_cast<float>(log(static_cast<double>(value)));
  running[2] = before[2] + value;
  running[3] = before[3] + 1.0f;
}

template <class T>
void score(Score p, int64_t N, const void* hidden, const void* head, void* stream) {
  const auto is_aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const int64_t width = 16 / sizeof(T);
  p.is_aligned = is_aligned(hidden) && is_aligned(head) && p.hidden_stride % width == 0 && p.E % width == 0;
  const dim3 grid(static_cast<unsigned>(N));
  launch(score_kernel<T>, grid, stream, p, static_cast<const T*>(hidden), static_cast<const T*>(head));
}

}  // namespace
}  // namespace tts

int tts_cuda_score(int dtype, int64_t N, int64_t E, int64_t C, const void* hidden, int64_t hidden_stride, const void* head,
                   const float* bias, const float* before, int64_t label, int activation, float* out, float* running,
                   void* stream) {
  using namespace tts;
  return guarded([&] {
    check_range("score: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_range("score: N", N, 0, INT32_MAX);
    check_sizes("score: hidden", {N, std::max(hidden_stride, E)});
    check_sizes("score: head", {C, E});
    check_range("score: label", label, 0, C);
    check_range("score: activation", activation, TTS_ACTIVATION_SOFTMAX, TTS_ACTIVATION_SIGMOID + 1);
    const Score p{E, C, hidden_stride, bias, before, label, activation == TTS_ACTIVATION_SIGMOID, false, out, running};
    (dtype == TTS_F32 ? score<float> : dtype == TTS_F16 ? score<Half> : score<BFloat16>)(p, N, hidden, head, stream);
  });
}
