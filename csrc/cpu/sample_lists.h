// The lists of (weight, id), ids ascending, that the filters of sample leave, and the selection among them. Of sample.cpp alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>

#include "cpu/sample_row.h"

#if defined(__x86_64__) && defined(__gnu_linux__)
#include <immintrin.h>
#endif

namespace tts {
namespace {

constexpr int64_t kFew = 128;  // candidates that are sorted rather than halved once more

// What a list keeps: values in (low, high], and of those equal to `low` the ids up to `last_id`.
struct Range {
  float low, high = INFINITY;
  int32_t last_id = -1;
};

// Lists may overlap their source, from its start; they are written up to 16 entries beyond what is kept. Without `ids` entry i
// has the id first_id + i; without `to_ids` only values are kept.
int64_t keep_portable(const float* values, const int32_t* ids, int32_t first_id, int64_t count, const Range& range, float* to,
                      int32_t* to_ids) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = values[i];
    const int32_t id = ids == nullptr ? first_id + static_cast<int32_t>(i) : ids[i];
    to[kept] = value;
    if (to_ids != nullptr) to_ids[kept] = id;
    kept += (value > range.low && value <= range.high) || (value == range.low && id <= range.last_id);
  }
  return kept;
}

#if TTS_X86_LEVELS
__attribute__((target("arch=x86-64-v4"))) int64_t keep_avx512(const float* values, const int32_t* ids, int32_t first_id,
                                                              int64_t count, const Range& range, float* to, int32_t* to_ids) {
  const __m512 low = _mm512_set1_ps(range.low), high = _mm512_set1_ps(range.high);
  const __m512i last_id = _mm512_set1_epi32(range.last_id), step = _mm512_set1_epi32(kLanes);
  __m512i next =
      _mm512_add_epi32(_mm512_set1_epi32(first_id), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  int64_t kept = 0;
  const bool has_high = range.high < INFINITY, has_last_id = range.last_id >= 0;
  for (int64_t i = 0; i < count; i += kLanes, next = _mm512_add_epi32(next, step)) {
    const auto there = static_cast<__mmask16>(_bzhi_u32(0xFFFF, static_cast<unsigned>(std::min<int64_t>(count - i, kLanes))));
    const __m512 value = _mm512_maskz_loadu_ps(there, values + i);
    const __m512i id = ids == nullptr ? next : _mm512_maskz_loadu_epi32(there, ids + i);
    __mmask16 is_kept = _mm512_mask_cmp_ps_mask(there, value, low, _CMP_GT_OQ);
    if (has_high) is_kept = _mm512_mask_cmp_ps_mask(is_kept, value, high, _CMP_LE_OQ);
    if (has_last_id) is_kept |= _mm512_mask_cmple_epi32_mask(_mm512_mask_cmp_ps_mask(there, value, low, _CMP_EQ_OQ), id, last_id);
    if (to_ids != nullptr) _mm512_storeu_si512(to_ids + kept, _mm512_maskz_compress_epi32(is_kept, id));
    _mm512_storeu_ps(to + kept, _mm512_maskz_compress_ps(is_kept, value));
    kept += __builtin_popcount(static_cast<unsigned>(is_kept));
  }
  return kept;
}
#endif

int64_t keep(const float* values, const int32_t* ids, int32_t first_id, int64_t count, const Range& range, float* to,
             int32_t* to_ids) {
#if TTS_X86_LEVELS
  if (isa() >= TTS_ISA_AVX512) return keep_avx512(values, ids, first_id, count, range, to, to_ids);
#endif
  return keep_portable(values, ids, first_id, count, range, to, to_ids);
}

// values = 2^(factor * (value - peak)), 0 in the 16 behind the last.
TTS_CLONES void weigh_list(float* values, int64_t count, float peak, float factor) {
  for (int64_t i = 0; i < count; i += kLanes) store(values + i, exp2((load<kLanes>(values + i) - peak) * factor));
  store(values + count, F32x16{});
}

// The weights of all blocks of a list up to and with each; returns the last.
TTS_CLONES double accumulate_list(const float* weights, int64_t count, double* ends) {
  double total = 0.0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    F64x8 lanes = {};
    for (int64_t i = begin; i < std::min(count, begin + kBlock); i += kLanes) lanes += sum_halves(load<kLanes>(weights + i));
    *ends++ = total += sum_lanes(lanes);
  }
  return total;
}

struct Part {
  int64_t count;
  double mass;
};

TTS_CLONES Part part_above(const float* weights, int64_t count, float pivot) {
  U32x16 counts = {};
  F64x8 mass = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 value = load<kLanes>(weights + i);
    mass += sum_halves(value > pivot ? value : F32x16{});
    counts += value > pivot ? U32x16{} + 1u : U32x16{};
  }
  Part part{0, sum_lanes(mass)};
  for (int lane = 0; lane < kLanes; ++lane) part.count += counts[lane];
  return part;
}

// The last that a filter keeps, by descending weight and then ascending id: all above `weight`, and the first `ties` equal to it.
struct Cut {
  float weight;
  int64_t ties;
};

// Keeps the first and those before which lie fewer than `count` entries and less than `mass`. All weights lie in (least, 1], 0
// fills the 16 behind the last; they are lost. Halves the range that holds the last one in steps of the float's bits.
Cut select(float* weights, int64_t size, float least, int64_t count, double mass) {
  uint32_t low = bit_cast<uint32_t>(least), high = bit_cast<uint32_t>(1.0f);
  Part before{0, 0.0};
  while (size > kFew && high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const auto pivot = bit_cast<float>(middle);
    Part above = part_above(weights, size, pivot);
    above.count += before.count;
    above.mass += before.mass;
    const bool is_above = above.count > 0 && (above.count >= count || above.mass >= mass);
    size = keep(weights, nullptr, 0, size, is_above ? Range{pivot} : Range{-1.0f, pivot}, weights, nullptr);
    std::fill_n(weights + size, kLanes, 0.0f);
    if (is_above) {
      low = middle;
    } else {
      before = above;
      high = middle;
    }
  }
  if (high - low > 1) std::sort(weights, weights + size, std::greater<float>());  // else all are equal
  Cut cut{bit_cast<float>(high), 0};
  for (int64_t i = 0; i < size && (before.count == 0 || (before.count < count && before.mass < mass)); ++i, ++before.count) {
    cut = {weights[i], weights[i] == cut.weight ? cut.ties + 1 : 1};
    before.mass += weights[i];
  }
  return cut;
}

}  // namespace
}  // namespace tts
