// rope: low, high = low * cos_low - high * sin_low, high * cos_high + low * sin_high in place, for the two halves of the first R
// elements of every head; products and sums are rounded to T.
//
// A task is a range of tokens: it reads and writes N*H*R elements, a token's cosines and sines once for all of its heads.
// Invariant: every pair of elements goes through the same operations of one lane, so its bits do not depend on where it stands.
#include <algorithm>

#include "common/check.h"
#include "common/threads.h"
#include "cpu/elementwise.h"

namespace tts {
namespace {

constexpr int64_t kParallelWork = 1 << 13;  // elements below which a second thread costs more than it saves

template <class T>
struct Rope {
  int64_t N, H, R;
  T* x;
  int64_t x_token, x_head;
  const T* cos;
  int64_t cos_stride;
  const T* sin;
  int64_t sin_stride;
};

// a * b rounded before it goes into a sum. The compiler would fuse a float32 product with the sum, which rounds once: it must
// not see that the bits stay as they are.
template <class T>
TTS_INLINE F32x16 product(F32x16 a, F32x16 b) {
  uint32_t none = 0;
  if (sizeof(T) == sizeof(float)) __asm__("" : "+r"(none));
  return bit_cast<F32x16>(bit_cast<U32x16>(rounded(a * b, T{})) ^ none);
}

// Elements i..i+COUNT-1 of both halves of all heads of a token; COUNT 0: `count` elements.
template <int COUNT, class T>
TTS_INLINE void turn(const Rope<T>& p, int64_t token, int64_t i, int64_t count) {
  const auto get = [=](const T* from) TTS_INLINE_LAMBDA { return load_part(from, COUNT > 0 ? COUNT : count); };
  const auto put = [=](T* to, const Block& block) TTS_INLINE_LAMBDA { store_part(to, block, COUNT > 0 ? COUNT : count); };
  const int64_t half = p.R / 2;
  const T *cos = p.cos + token * p.cos_stride + i, *sin = p.sin + token * p.sin_stride + i;
  const Block low_cos = get(cos), high_cos = get(cos + half), low_sin = get(sin), high_sin = get(sin + half);
  for (int64_t h = 0; h < p.H; ++h) {
    T* x = p.x + token * p.x_token + h * p.x_head + i;
    const Block low = get(x), high = get(x + half);
    put(x, {product<T>(low.first, low_cos.first) - product<T>(high.first, low_sin.first),
            product<T>(low.second, low_cos.second) - product<T>(high.second, low_sin.second)});
    put(x + half, {product<T>(high.first, high_cos.first) + product<T>(low.first, high_sin.first),
                   product<T>(high.second, high_cos.second) + product<T>(low.second, high_sin.second)});
  }
}

template <class T>
TTS_CLONES void turn_tokens(const Rope<T>& p, int64_t first, int64_t last) {
  const int64_t half = p.R / 2, whole = half - half % kBlockLanes, rest = half % kBlockLanes;
  for (int64_t token = first; token < last; ++token) {
    for (int64_t i = 0; i < whole; i += kBlockLanes) turn<kBlockLanes>(p, token, i, 0);
    if (rest == 8)
      turn<8>(p, token, whole, 0);
    else if (rest == 16)
      turn<16>(p, token, whole, 0);
    else if (rest > 0)
      turn<0>(p, token, whole, rest);
  }
}

template <class T>
void turn(const Rope<T>& p) {
  const int64_t tasks = p.N * p.H * p.R > kParallelWork ? std::min<int64_t>(max_threads(), p.N) : 1;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(tasks)) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) turn_tokens(p, p.N * task / tasks, p.N * (task + 1) / tasks);
}

}  // namespace
}  // namespace tts

int tts_rope(int dtype, int64_t N, int64_t H, int64_t R, void* x, int64_t x_token, int64_t x_head, const void* cos,
             int64_t cos_stride, const void* sin, int64_t sin_stride) {
  using namespace tts;
  return guarded([&] {
    check_range("rope: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("rope: x", {N, H, R});
    check(R % 2 == 0, "rope: R must be even, got " + std::to_string(R));
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      turn(Rope<T>{N, H, R, static_cast<T*>(x), x_token, x_head, static_cast<const T*>(cos), cos_stride,
                   static_cast<const T*>(sin), sin_stride});
    });
  });
}
