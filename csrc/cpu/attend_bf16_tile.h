// The state of sixteen query heads, the lanes of a tile, while they meet their context. Of attend_bf16.cpp alone.
#pragma once

#include <cstdint>

#include "common/sizes.h"
#include "common/tiles.h"
#include "cpu/attend_bf16_eight.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

struct Tile {
  BF16* queries;   // [D / 2][16][2], D in whole chunks of 32
  float* sums;     // [D in chunks][16], or, `by_lane`, [16][D in chunks] in the order in which eight lanes take them
  float* maximum;  // [16] powers of two that the weights are relative to; -inf: no token yet
  float* total;    // [2][16] sums of the weights at even and at odd pairs of positions
  int32_t* query;  // [16] the query of each lane, -1: none
  float* largest;  // [1] magnitude of the queries
  bool* by_lane;

  static int64_t bytes(int64_t dim) { return round_up(dim, 32) * (32 + 64) + 5 * 64; }

  Tile(char* memory, int64_t dim)
      : queries(reinterpret_cast<BF16*>(memory)),
        sums(reinterpret_cast<float*>(memory + round_up(dim, 32) * 32)),
        maximum(sums + round_up(dim, 32) * kLanes),
        total(maximum + kLanes),
        query(reinterpret_cast<int32_t*>(total + 2 * kLanes)),
        largest(total + 3 * kLanes),
        by_lane(reinterpret_cast<bool*>(largest + 1)) {}
};

// Raises the maximum of each lane to a power of two not below `most`, and rescales what was summed: exactly.
TTS_TARGET_AVX512_BF16 inline void raise_maximum(const Tile& tile, __m512 most, int64_t dim) {
  const __m512 before = _mm512_load_ps(tile.maximum);
  const __m512 after = _mm512_max_ps(_mm512_roundscale_ps(most, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC), before);
  if (_mm512_cmp_ps_mask(after, before, _CMP_NEQ_UQ) == 0) return;
  _mm512_store_ps(tile.maximum, after);
  // From -inf the factor is 0, and what it meets is 0.
  const __m512 factor = _mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_sub_ps(before, after));
  const __mmask16 changes = _mm512_cmp_ps_mask(after, before, _CMP_NEQ_UQ);
  for (int64_t i = 0; i < 2; ++i) {
    const __m512 total = _mm512_load_ps(tile.total + i * kLanes);
    _mm512_store_ps(tile.total + i * kLanes, _mm512_mask_mul_ps(total, changes, total, factor));
  }
  for (int64_t d = 0; d < dim; ++d) {
    const __m512 sum = _mm512_load_ps(tile.sums + d * kLanes);
    _mm512_store_ps(tile.sums + d * kLanes, _mm512_mask_mul_ps(sum, changes, sum, factor));
  }
}

// The same of eight lanes from `first` on, whose sums lie by lane.
TTS_TARGET_AVX512_BF16 inline void raise_maximum_of_eight(const Tile& tile, int64_t first, __m256 most, int64_t dim) {
  const __m256 before = _mm256_load_ps(tile.maximum + first);
  const __m256 after = _mm256_max_ps(_mm256_roundscale_ps(most, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC), before);
  const __mmask8 changes = _mm256_cmp_ps_mask(after, before, _CMP_NEQ_UQ);
  if (changes == 0) return;
  _mm256_store_ps(tile.maximum + first, after);
  const int64_t size = round_up(dim, 32);
  alignas(32) float factors[kEight];
  _mm256_store_ps(factors, _mm256_scalef_ps(_mm256_set1_ps(1.0f), _mm256_sub_ps(before, after)));
  for (int64_t lane = 0; lane < kEight; ++lane) {
    if ((changes >> lane & 1) == 0) continue;
    tile.total[first + lane] *= factors[lane];
    tile.total[kLanes + first + lane] *= factors[lane];
    float* sums = tile.sums + (first + lane) * size;
    for (int64_t place = 0; place < size; ++place) sums[place] *= factors[lane];
  }
}

}  // namespace
}  // namespace tts

#endif
