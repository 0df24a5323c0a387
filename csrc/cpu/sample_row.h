// What sample does in one pass over a row of logits, and with the maxima and sums that the pass leaves. Of sample.cpp alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/simd.h"

namespace tts {
namespace {

constexpr int64_t kBlock = 256;
constexpr int kChains = 4;        // independent maxima and sums: hides the latency of dependent steps
constexpr int64_t kAhead = 4096;  // bytes of the row that are on their way from DRAM

TTS_INLINE F64x8 sum_halves(F32x16 value) {
  const auto low = __builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7);
  const auto high = __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_convertvector(low, F64x8) + __builtin_convertvector(high, F64x8);
}

TTS_INLINE double sum_lanes(F64x8 lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// 2^(factor * x) for x <= 0; 0 from `least` = -126 / factor down, NaN for NaN. The product is part of two sums, so four
// operations less than exp2(factor * x): this is what bounds a plain draw.
TTS_INLINE F32x16 exp2_product(F32x16 x, float factor, float least) {
  const float kShift = 0x1.8p23f + 127;  // adding it leaves round(factor * x) + 127 in the low bits
  const F32x16 shifted = x * factor + kShift, f = x * factor - (shifted - kShift);
  return x <= least ? F32x16{} : exp2_fraction(f) * bit_cast<F32x16>(bit_cast<U32x16>(shifted) << 23);
}

// most = the largest logit of each lane of a block, sums[f] = the sums of 2^(factors[f] * (logit - most)), both per lane: nothing
// overflows, and lanes without a finite logit have sum 0. NaN and +inf make NaN sums. Returns the sums of the logits.
template <int FACTORS>
TTS_INLINE F32x16 sum_block(const float* logits, const float* factors, F32x16* most, F32x16* const* sums) {
  F32x16 tops[kChains], logit_sums[kChains] = {}, sum[FACTORS] = {};
  for (F32x16& top : tops) top = splat(-FLT_MAX);
  for (int64_t i = 0; i < kBlock; i += kChains * kLanes)
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) {
      const F32x16 value = load<kLanes>(logits + i + j * kLanes);
      tops[j] = larger(value, tops[j]);
      logit_sums[j] += value;
    }
  const F32x16 largest = larger(larger(tops[0], tops[1]), larger(tops[2], tops[3]));
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    __builtin_prefetch(reinterpret_cast<const char*>(logits + i) + kAhead);
    const F32x16 difference = load<kLanes>(logits + i) - largest;
    for (int f = 0; f < FACTORS; ++f) sum[f] += exp2_product(difference, factors[f], -126.0f / factors[f]);
  }
  *most = largest;
  for (int f = 0; f < FACTORS; ++f) *sums[f] = sum[f];
  return (logit_sums[0] + logit_sums[1]) + (logit_sums[2] + logit_sums[3]);
}

template <class T>
TTS_INLINE void widen(const T* logits, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    __builtin_prefetch(reinterpret_cast<const char*>(logits + i) + kAhead);
    store(to + i, load<kLanes>(logits + i));
  }
  for (; i < count; ++i) to[i] = load1(logits + i);
}

// A whole block in float32: as it lies there, or widened into `block`.
TTS_INLINE const float* widened(const float* logits, float*) { return logits; }
template <class T>
TTS_INLINE const float* widened(const T* logits, float* block) {
  widen(logits, kBlock, block);
  return block;
}

// The block at `logits`, -inf behind its `count` tokens.
template <class T>
TTS_INLINE void copy_block(const T* logits, int64_t count, float* block) {
  widen(logits, count, block);
  std::fill(block + count, block + kBlock, -INFINITY);
}

// `sum_block` for all blocks, with one factor into `first` alone; returns the sum of the logits.
template <int FACTORS, class T>
TTS_CLONES double sum_row(const T* logits, int64_t V, const float* factors, F32x16* most, F32x16* first, F32x16* second) {
  alignas(64) float block[kBlock];
  F64x8 logit_sum = {};
  const int64_t whole = V / kBlock, rest = V % kBlock;
  for (int64_t b = 0; b < whole; ++b) {
    F32x16* const sums[] = {first + b, second + b};
    logit_sum += sum_halves(sum_block<FACTORS>(widened(logits + b * kBlock, block), factors, most + b, sums));
  }
  double sum = sum_lanes(logit_sum);
  if (rest > 0) {
    copy_block(logits + whole * kBlock, rest, block);
    F32x16* const sums[] = {first + whole, second + whole};
    sum_block<FACTORS>(block, factors, most + whole, sums);
    for (int64_t i = 0; i < rest; ++i) sum += block[i];
  }
  return sum;
}

// The largest logit of each block, and of all.
TTS_CLONES float find_tops(const F32x16* most, int64_t blocks, float* tops) {
  F32x16 peak = splat(-FLT_MAX);
  for (int64_t b = 0; b < blocks; ++b) {
    tops[b] = max_lanes(most[b]);
    peak = larger(most[b], peak);
  }
  return max_lanes(peak);
}

// The weights of all blocks, relative to the peak's.
TTS_CLONES double add_up(const F32x16* most, const F32x16* sums, int64_t blocks, float peak, float factor) {
  F64x8 lanes = {};
  for (int64_t b = 0; b < blocks; ++b) lanes += sum_halves(sums[b] * exp2((most[b] - peak) * factor));
  return sum_lanes(lanes);
}

// The same up to and with each block; returns the last.
TTS_CLONES double accumulate(const F32x16* most, const F32x16* sums, int64_t blocks, float peak, float factor, double* ends) {
  double total = 0.0;
  for (int64_t b = 0; b < blocks; ++b) ends[b] = total += sum_lanes(sum_halves(sums[b] * exp2((most[b] - peak) * factor)));
  return total;
}

TTS_CLONES void weigh_block(const float* logits, const F32x16& most, float peak, float factor, float* weights) {
  const F32x16 scale = exp2((most - peak) * factor);
  for (int64_t i = 0; i < kBlock; i += kLanes) store(weights + i, exp2((load<kLanes>(logits + i) - most) * factor) * scale);
}

// The first of `count` weights with which the sum from `reached` on exceeds `target`; where rounding leaves the sum short of it,
// the last that is not 0.
int64_t invert_block(const float* weights, int64_t count, double reached, double target) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (weights[i] == 0) continue;
    last = i;
    if ((reached += weights[i]) > target) break;
  }
  return last;
}

}  // namespace
}  // namespace tts
