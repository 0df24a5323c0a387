// rms_norm: out[m] = weight * (x[m] / sqrt(mean(x[m]^2) + eps)), what is in parentheses rounded to T before the product.
//
// A task is a range of rows: it reads a row twice, the second time from L1, the weight from cache, and writes the row once.
// Invariant: the squares of a row are summed in 4 x 16 lanes over E, then as a tree, so a row's bits do not depend on the rows
// beside it.
#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/threads.h"
#include "cpu/elementwise.h"

namespace tts {
namespace {

constexpr int64_t kParallelWork = 1 << 13;  // elements below which a second thread costs more than it saves

template <class T>
struct RmsNorm {
  int64_t M, E, x_stride;
  const T *x, *weight;
  float eps;
  T* out;
};

TTS_INLINE void add_squares(const Block& values, F32x16* sums) {
  sums[0] += values.first * values.first;
  sums[1] += values.second * values.second;
}

template <class T>
TTS_INLINE float sum_squares(const T* row, int64_t E) {
  F32x16 sums[4] = {};
  int64_t i = 0;
  for (; i + 2 * kBlockLanes <= E; i += 2 * kBlockLanes) {
    add_squares(load_block(row + i), sums);
    add_squares(load_block(row + i + kBlockLanes), sums + 2);
  }
  if (i + kBlockLanes <= E) {
    add_squares(load_block(row + i), sums);
    i += kBlockLanes;
  }
  if (i < E) add_squares(load_part(row + i, E - i), sums + 2);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
TTS_CLONES void norm_rows(const RmsNorm<T>& p, int64_t first, int64_t last) {
  for (int64_t m = first; m < last; ++m) {
    const T* row = p.x + m * p.x_stride;
    const float scale = 1.0f / std::sqrt(sum_squares(row, p.E) / static_cast<float>(p.E) + p.eps);
    map_and_mul(row, p.weight, p.E, p.out + m * p.E, [=](F32x16 value) TTS_INLINE_LAMBDA { return value * scale; });
  }
}

template <class T>
void norm(const RmsNorm<T>& p) {
  const int64_t tasks = p.M * p.E > kParallelWork ? std::min<int64_t>(max_threads(), p.M) : 1;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(tasks)) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) norm_rows(p, p.M * task / tasks, p.M * (task + 1) / tasks);
}

}  // namespace
}  // namespace tts

int tts_rms_norm(int dtype, int64_t M, int64_t E, const void* x, int64_t x_stride, const void* weight, double eps, void* out) {
  using namespace tts;
  return guarded([&] {
    check_range("rms_norm: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("rms_norm: x", {M, std::max(x_stride, E)});
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      norm(RmsNorm<T>{M, E, x_stride, static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<float>(eps),
                      static_cast<T*>(out)});
    });
  });
}
