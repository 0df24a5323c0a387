// The weights of attend in bfloat16: 2^(factor * score - maximum) of sixteen lanes, or of eight twice. Of attend_bf16.cpp alone.
//
// A weight has eight bits, so most of the work is done on 32 of them at a time, in 16-bit integers, and few of its instructions
// need the one port that is left to multiplications while tile products are under way.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/simd.h"
#include "common/tiles.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

// What the scores of the lanes meet: score * scale + offset is 2^18 * (255 + x), x = factor * score - maximum.
//
// For -127 <= x < 1 that lies between 2^25 and 2^26, so the word of the float ends with the seven bits of floor(x) + 127 and
// sixteen bits of fraction. Rounded once, to multiples of 2^-16 whatever the maximum is: of another maximum the weight is exactly
// 2^k of what it was.
struct Exponents {
  static constexpr float kUnit = 0x1p18f;
  static constexpr float kMost = 0x1p22f;  // where scores and maximum are smaller, nothing overflows and 255 - maximum is exact

  __m512 scale, offset;

  // Lanes that have seen nothing have a maximum of -inf and scores of -inf: to these any other will do.
  TTS_TARGET_AVX512_BF16 static Exponents of(float factor, __m512 maximum) {
    const __mmask16 is_empty = _mm512_cmp_ps_mask(maximum, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    const __m512 least = _mm512_sub_ps(_mm512_set1_ps(255), _mm512_mask_mov_ps(maximum, is_empty, _mm512_setzero_ps()));
    return {_mm512_set1_ps(factor * kUnit), _mm512_mul_ps(least, _mm512_set1_ps(kUnit))};
  }
};

// 2^f - 1 for f in [0, 1), in units of 2^-15, and half of an eighth bit: for each 1/32 a line, off by 3e-5 at most.
struct Lines {
  alignas(64) uint16_t start[32] = {}, slope[32] = {};
};

constexpr Lines make_lines() {
  constexpr double kRoot = 1.0218971486541166;   // 2^(1/32)
  constexpr double kOne = 32768, kHalf = 128.5;  // of the eighth bit, and of the unit that is cut off
  Lines lines;
  double from = 1;
  for (int i = 0; i < 32; ++i, from *= kRoot) {
    const double slope = from * (kRoot - 1) * 32, above = from * 2.9e-5;  // half of the most that the chord lies above 2^f
    lines.slope[i] = static_cast<uint16_t>(slope * kOne + .5);
    lines.start[i] = static_cast<uint16_t>(static_cast<int32_t>((from - 1 - above) * kOne + kHalf - slope * kOne * i / 32));
  }
  return lines;
}
inline constexpr Lines kLines = make_lines();

// The weights of a token in the low half of each word, of the next in the high half.
TTS_TARGET_AVX512_BF16 inline __m512i weights_of(__m512 a, __m512 b, const Exponents& exponents) {
  // The half of a word that is moved into the other: bytes 0 and 1 up, or 2 and 3 down.
  const __m512i word = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
  const __m512i up = _mm512_add_epi8(word, _mm512_set1_epi32(0x01000100)),
                down = _mm512_add_epi8(word, _mm512_set1_epi32(0x03020302));
  const __m512i x = _mm512_castps_si512(_mm512_fmadd_ps(a, exponents.scale, exponents.offset));
  const __m512i y = _mm512_castps_si512(_mm512_fmadd_ps(b, exponents.scale, exponents.offset));
  const __m512i fraction = _mm512_mask_shuffle_epi8(x, 0xCCCCCCCCCCCCCCCC, y, up);
  const __m512i whole = _mm512_mask_shuffle_epi8(y, 0x3333333333333333, x, down);
  const __m512i line = _mm512_srli_epi16(fraction, 11);
  const __m512i start = _mm512_permutexvar_epi16(line, _mm512_load_si512(kLines.start));
  const __m512i slope = _mm512_permutexvar_epi16(line, _mm512_load_si512(kLines.slope));
  const __m512i mantissa = _mm512_srli_epi16(_mm512_add_epi16(start, _mm512_mulhi_epu16(slope, fraction)), 8);
  const __mmask32 is_normal = _mm512_cmpgt_epi16_mask(whole, _mm512_set1_epi16(0x4C00));  // the high half of 2^25
  return _mm512_maskz_add_epi16(is_normal, _mm512_slli_epi16(whole, 7), mantissa);
}

// The largest score of each lane. With HIDES, what lane l does not see (tokens from visible[l] on) becomes -inf.
template <bool HIDES>
TTS_TARGET_AVX512_BF16 inline __m512 largest_scores(float* scores, int64_t tokens, __m512i visible) {
  const __m512 hidden = _mm512_set1_ps(-INFINITY);
  __m512 most[4] = {hidden, hidden, hidden, hidden};
  for (int64_t t = 0; t < tokens; t += 4)
    for (int i = 0; i < 4; ++i) {
      __m512 score = _mm512_load_ps(scores + (t + i) * kLanes);
      if (HIDES) {
        const __mmask16 sees = _mm512_cmpgt_epi32_mask(visible, _mm512_set1_epi32(static_cast<int>(t + i)));
        score = _mm512_mask_mov_ps(hidden, sees, score);
        _mm512_store_ps(scores + (t + i) * kLanes, score);
      }
      most[i] = _mm512_max_ps(most[i], score);
    }
  return _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
}

// Whether the maximum of a lane that has seen something is so large that `Exponents` might not be exact.
TTS_TARGET_AVX512_BF16 inline bool is_large(__m512 maximum) {
  const __mmask16 is_seen = _mm512_cmp_ps_mask(maximum, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
  return _mm512_mask_cmp_ps_mask(is_seen, _mm512_abs_ps(maximum), _mm512_set1_ps(Exponents::kMost), _CMP_NLT_UQ) != 0;
}

TTS_TARGET_AVX512_BF16 inline bool has_nan(const float* scores, int64_t tokens) {
  __mmask16 found = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const __m512 score = _mm512_load_ps(scores + t * kLanes);
    found = static_cast<__mmask16>(found | _mm512_cmp_ps_mask(score, score, _CMP_UNORD_Q));
  }
  return found != 0;
}

// Puts in the place of scores of any size what needs neither scale nor offset; the same numbers where `Exponents` is exact. A
// lane with a NaN or an infinite maximum gets a NaN as its total.
TTS_TARGET_AVX512_BF16 inline Exponents place_with_care(float* scores, int64_t tokens, int64_t lanes, float factor,
                                                        const float* maximum, float* total) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const float base = maximum[lane] == -INFINITY ? 0 : maximum[lane];
    const bool is_small = std::fabs(base) < Exponents::kMost;
    for (int64_t t = 0; t < tokens; ++t) {
      float& score = scores[t * lanes + lane];
      const float x = score * factor - base;
      if (std::isnan(x)) total[lane] = NAN;
      // A large product may lie above the maximum by its rounding, which comes to more than 1.
      score = is_small ? std::fmaf(score, factor * Exponents::kUnit, (255 - base) * Exponents::kUnit)
                       : (255 + std::min(x, 0.0f)) * Exponents::kUnit;
    }
  }
  return {_mm512_set1_ps(1), _mm512_setzero_ps()};
}

}  // namespace
}  // namespace tts

#endif
