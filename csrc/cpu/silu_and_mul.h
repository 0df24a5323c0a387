// The arithmetic of silu_and_mul, for the op and for what ends a product with it.
#pragma once

#include <cmath>

#include "cpu/elementwise.h"

namespace tts {
namespace {

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

// out[0:count] = silu(gate) * up, the first factor rounded to T.
template <class T>
TTS_INLINE void silu_and_mul(const T* gate, const T* up, int64_t count, T* out) {
  map_and_mul(gate, up, count, out, [](F32x16 value) TTS_INLINE_LAMBDA { return silu(value); });
}

}  // namespace
}  // namespace tts
