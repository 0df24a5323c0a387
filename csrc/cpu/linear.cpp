// linear: out[m,n] = sum_k x[m,k] * W[n,k] + bias[n], W packed in panels of 16 rows; and the packing.
#include "cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/isa.h"

namespace tts {
namespace {

struct Pack {
  int64_t N, K, weight_stride;
  const void* weight;
  void* packed;
};

template <class T>
void pack_block(const Pack& p, int64_t n0, int64_t k0, T* to) {
  const int64_t rows = std::min(kPanelColumns, p.N - n0), depth = std::min(kPanelDepth, p.K - k0);
  std::memset(static_cast<void*>(to), 0, kBlockSize * sizeof(T));
  for (int64_t n = 0; n < rows; ++n) {
    const T* from = static_cast<const T*>(p.weight) + (n0 + n) * p.weight_stride + k0;
    for (int64_t k = 0; k < depth; ++k) to[k / 2 * 2 * kPanelColumns + n * 2 + k % 2] = from[k];
  }
}

}  // namespace
}  // namespace tts

int tts_pack(int dtype, int64_t N, int64_t K, const void* weight, int64_t weight_stride, void* packed) {
  using namespace tts;
  return guarded([&] {
    check_range("pack: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("pack: weight", {N, std::max(weight_stride, K)});
    check_sizes("pack: packed", {in_blocks(N, kPanelColumns), in_blocks(K, kPanelDepth), kBlockSize});
    const Pack p{N, K, weight_stride, weight, packed};
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      const int64_t depth = in_blocks(K, kPanelDepth), blocks = in_blocks(N, kPanelColumns) * depth;
#pragma omp parallel for if (N * K > kParallelWork)
      for (int64_t i = 0; i < blocks; ++i)
        pack_block(p, i / depth * kPanelColumns, i % depth * kPanelDepth, static_cast<T*>(packed) + i * kBlockSize);
    });
  });
}

int tts_linear(int dtype, int64_t M, int64_t N, int64_t K, const void* x, int64_t x_stride, const void* packed, const void* bias,
               void* out) {
  using namespace tts;
  return guarded([&] {
    check_range("linear: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("linear: x", {M, std::max(x_stride, K)});
    check_sizes("linear: weight", {in_blocks(N, kPanelColumns), in_blocks(K, kPanelDepth), kBlockSize});
    check_sizes("linear: out", {M, N});
    if (M == 0 || N == 0) return;
    const Linear p{M, N, K, x_stride, x, packed, bias, out};
    if (dtype == TTS_BF16 && has_bf16_tiles())
      linear_in_tiles(p);
    else if (dtype == TTS_BF16 && has_bf16_dot())
      linear_in_dots(p);
    else
      linear_in_float32(p, dtype);
  });
}
