// silu_and_mul: out[m,f] = silu(x[m,f]) * x[m,F+f] with silu(g) = g / (1 + exp(-g)), the first factor rounded to T.
//
// A task is a range of rows: it reads 2*F elements of a row and writes F. Invariant: every element goes through the same
// operations of one lane, so its bits do not depend on where it stands.
#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/threads.h"
#include "cpu/elementwise.h"

namespace tts {
namespace {

constexpr int64_t kParallelWork = 1 << 12;  // elements of out below which a second thread costs more than it saves

template <class T>
struct SiluAndMul {
  int64_t M, F, x_stride;
  const T* x;
  T* out;
};

// g / (1 + exp(-g)) within 2 ulp, as g/2 over 1/2 + exp(-g)/2: exp(-g) may then come up to 2^128 before the result is 0.
TTS_INLINE F32x16 silu(F32x16 g) {
  const float kShift = 0x1.8p23f;                                            // adding it leaves the rounded value in the low bits
  const float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;            // 15 bits: n * kLn2High is exact
  const F32x16 shifted = kShift - g * 0x1.715476p+0f, n = shifted - kShift;  // round(-g / ln 2)
  const F32x16 rest = (-g - n * kLn2High) - n * kLn2Low;
  const F32x16 half_power = bit_cast<F32x16>((bit_cast<U32x16>(shifted) + 126u) << 23);
  const F32x16 half_exp = exp2_fraction(rest * 0x1.715476p+0f) * half_power;
  const F32x16 bounded = g < -88.73f ? splat(INFINITY) : g > 87.0f ? F32x16{} : half_exp;
  return 0.5f * g / (0.5f + bounded);
}

template <class T>
TTS_CLONES void activate_rows(const SiluAndMul<T>& p, int64_t first, int64_t last) {
  for (int64_t m = first; m < last; ++m) {
    const T* gate = p.x + m * p.x_stride;
    map_and_mul(gate, gate + p.F, p.F, p.out + m * p.F, [](F32x16 value) TTS_INLINE_LAMBDA { return silu(value); });
  }
}

template <class T>
void activate(const SiluAndMul<T>& p) {
  const int64_t tasks = p.M * p.F > kParallelWork ? std::min<int64_t>(max_threads(), p.M) : 1;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(tasks)) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) activate_rows(p, p.M * task / tasks, p.M * (task + 1) / tasks);
}

}  // namespace
}  // namespace tts

int tts_silu_and_mul(int dtype, int64_t M, int64_t F, const void* x, int64_t x_stride, void* out) {
  using namespace tts;
  return guarded([&] {
    check_range("silu_and_mul: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("silu_and_mul: x", {M, 2, std::max(x_stride, F)});
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      activate(SiluAndMul<T>{M, F, x_stride, static_cast<const T*>(x), static_cast<T*>(out)});
    });
  });
}
