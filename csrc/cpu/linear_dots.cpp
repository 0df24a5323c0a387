// linear in dot products of bfloat16 pairs.
//
// Invariant: an element of the output is summed over k in ascending pairs; no other row or column enters it.
#include <cstring>

#include "common/tiles.h"
#include "cpu/linear.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kAhead = 8 * kBlockSize;  // elements between what is loaded and what is asked for: 8 KB

TTS_INLINE void prefetch_block(const BF16* block) {
  for (int64_t i = 0; i < kBlockSize; i += 32) __builtin_prefetch(block + i);
}

// out[m, n0:n0+16] = sums[m] + bias, for the rows and columns that exist.
TTS_TARGET_AVX512_BF16 void write_sums(const Linear& p, const float* sums, int64_t m0, int64_t rows, int64_t n0) {
  const __mmask16 exists = static_cast<__mmask16>((1u << std::min(kPanelColumns, p.N - n0)) - 1);
  const void* from = static_cast<const BF16*>(p.bias) + n0;
  const __m256i half = p.bias == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(exists, from);
  const __m512 bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  for (int64_t m = 0; m < rows; ++m) {
    const __m256bh sum = _mm512_cvtneps_pbh(_mm512_add_ps(_mm512_load_ps(sums + m * kPanelColumns), bias));
    void* to = static_cast<BF16*>(p.out) + (m0 + m) * p.N + n0;
    _mm256_mask_storeu_epi16(to, exists, reinterpret_cast<const __m256i&>(sum));
  }
}

// sums[0:ROWS] = x[0:ROWS] @ panel.
template <int ROWS>
TTS_TARGET_AVX512_BF16 inline void dot_rows(const BF16* x, int64_t x_stride, const BF16* panel, int64_t depth, float* sums) {
  __m512 acc[ROWS];
  for (int m = 0; m < ROWS; ++m) acc[m] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k, panel += kBlockSize, x += kPanelDepth) {
    prefetch_block(panel + kAhead);
    for (int pair = 0; pair < 16; ++pair) {
      const __m512i columns = _mm512_loadu_si512(panel + pair * 2 * kPanelColumns);
      for (int m = 0; m < ROWS; ++m) {
        int32_t both;
        std::memcpy(&both, x + m * x_stride + 2 * pair, sizeof(both));
        acc[m] = _mm512_dpbf16_ps(acc[m], reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                                  reinterpret_cast<const __m512bh&>(columns));
      }
    }
  }
  for (int m = 0; m < ROWS; ++m) _mm512_store_ps(sums + m * kPanelColumns, acc[m]);
}

// As many rows as there are registers for sums, and what is left in few turns: each reads the panel.
template <int ROWS = 24>
TTS_TARGET_AVX512_BF16 void panel_of_dots(const Linear& p, const PaddedRows<BF16>& x, int64_t m0, int64_t m1, int64_t panel) {
  alignas(64) float sums[ROWS * kPanelColumns];
  const BF16* weight = static_cast<const BF16*>(p.weight) + panel * p.depth() * kBlockSize;
  for (; m0 + ROWS <= m1; m0 += ROWS) {
    dot_rows<ROWS>(x.rows + m0 * x.stride, x.stride, weight, p.depth(), sums);
    write_sums(p, sums, m0, ROWS, panel * kPanelColumns);
  }
  if constexpr (ROWS > 1) panel_of_dots<ROWS == 24 ? 16 : ROWS / 2>(p, x, m0, m1, panel);
}

void copy_row(const Linear& p, int64_t m, BF16* to) {
  std::memcpy(to, static_cast<const BF16*>(p.x) + m * p.x_stride, static_cast<size_t>(p.K) * 2);
}

}  // namespace

void linear_in_dots(const Linear& p) {
  for_each_panel<BF16>(p, [&](int64_t m, BF16* to) { copy_row(p, m, to); }, [&](auto&&... at) { panel_of_dots<>(p, at...); });
}

}  // namespace tts

#else

namespace tts {
void linear_in_dots(const Linear& p) { linear_in_float32(p, TTS_BF16); }
}  // namespace tts

#endif
