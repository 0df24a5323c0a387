// How attend in bfloat16 brings queries, keys and values into the order of its products. Of attend_bf16.cpp alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/simd.h"
#include "common/tiles.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kBlockTokens = 96;  // laid out at a time: the sums of the tiles, in L2, are read and written once for them

// Sixteen rows of sixteen words become columns.
TTS_TARGET_AVX512_BF16 inline void transpose(__m512i* m) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      m[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      m[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 4; ++i) {  // m[4 * q + i] holds words 4 * l + i of rows 4 * q..4 * q + 3 in its 128-bit lane l
    const __m512i a = _mm512_shuffle_i32x4(m[i], m[4 + i], 0x88), b = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(m[i], m[4 + i], 0xDD), d = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0xDD);
    t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + i] = _mm512_shuffle_i32x4(a, b, 0xDD);
    t[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(c, d, 0xDD);
  }
  for (int i = 0; i < 16; ++i) m[i] = t[i];
}

TTS_TARGET_AVX512_BF16 inline __m512i load_pairs(const BF16* row, int64_t count) {
  return count >= 32 ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << count) - 1), row);
}

// The larger magnitude of each two, as bits.
TTS_TARGET_AVX512_BF16 inline __m512i larger(__m512i most, __m512i x) {
  return _mm512_max_epu16(most, _mm512_and_si512(x, _mm512_set1_epi16(0x7FFF)));
}

// The largest as a number: infinite or NaN if one of them is.
TTS_TARGET_AVX512_BF16 inline float largest_of(__m512i most) {
  const __m512i both = _mm512_max_epu32(_mm512_slli_epi32(most, 16), _mm512_and_si512(most, _mm512_set1_epi32(-65536)));
  const uint32_t bits = _mm512_reduce_max_epu32(both);
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

// lanes[pair][lane] = elements (2 * pair, 2 * pair + 1) of rows[lane], null rows and what lies behind `dim` being 0; negated
// where the scale is negative, so that the largest score is the largest product. Returns the largest magnitude.
TTS_TARGET_AVX512_BF16 float pack_queries(const BF16* const* rows, int64_t dim, bool negates, BF16* lanes) {
  const __m512i sign = _mm512_set1_epi32(negates ? static_cast<int>(0x80008000u) : 0);
  __m512i most = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += 32, lanes += kTileBytes / 2) {
    __m512i m[16];
    for (int lane = 0; lane < kLanes; ++lane) {
      m[lane] = rows[lane] == nullptr ? _mm512_setzero_si512() : _mm512_xor_si512(load_pairs(rows[lane] + d, dim - d), sign);
      most = larger(most, m[lane]);
    }
    transpose(m);
    for (int pair = 0; pair < 16; ++pair) _mm512_store_si512(lanes + pair * 2 * kLanes, m[pair]);
  }
  return largest_of(most);
}

// Keys and values of a block of tokens, in the order of the context: in runs of tokens that lie one behind the other.
struct Run {
  const BF16 *key, *value;
  int64_t tokens, slot;  // slot: of the first in its page
};
struct Runs {
  Run run[kBlockTokens];
  int64_t size = 0, key_stride = 0, value_stride = 0;  // elements from one token to the next
};

// The keys or the values token by token: `first` of each run and those behind it.
struct Rows {
  const BF16* at[kBlockTokens];

  Rows(const Runs& runs, const BF16* Run::* first, int64_t stride) {
    for (int64_t i = 0, t = 0; i < runs.size; ++i)
      for (int64_t j = 0; j < runs.run[i].tokens; ++j, ++t) at[t] = runs.run[i].*first + j * stride;
  }
};
inline Rows keys_of(const Runs& runs) { return {runs, &Run::key, runs.key_stride}; }
inline Rows values_of(const Runs& runs) { return {runs, &Run::value, runs.value_stride}; }

// Asks for the rows of the block after the one at hand, token by token: few lines are under way at a time, so they are asked for
// between the other work, not at once. Of a page it asks for the first lines, from which the machine's prefetcher goes on: what
// is asked for occupies a buffer until it comes, and the loads of the block at hand need those buffers.
class Ahead {
 public:
  void begin(const Runs& runs, int64_t dim) {
    runs_ = &runs;
    row_bytes_ = dim * 2;
    next_ = 0;
    left_ = 0;
  }

  TTS_INLINE void ask() {
    if (left_ == 0) {
      if (next_ == runs_->size) return;
      const Run& run = runs_->run[next_++];
      key_ = reinterpret_cast<const char*>(run.key);
      value_ = reinterpret_cast<const char*>(run.value);
      left_ = run.tokens;
    }
    ask_for(key_);
    ask_for(value_);
    key_ += runs_->key_stride * 2;
    value_ += runs_->value_stride * 2;
    --left_;
  }

  TTS_INLINE void ask(int tokens) {
    for (; tokens > 0; --tokens) ask();
  }

 private:
  static constexpr std::uintptr_t kPage = 4096, kAsked = 3 * kPage / 4;  // bytes

  TTS_INLINE void ask_for(const char* row) const {
    if (reinterpret_cast<std::uintptr_t>(row) % kPage >= kAsked) return;
    for (int64_t byte = 0; byte < row_bytes_; byte += 64) __builtin_prefetch(row + byte, 0, 2);
  }

  const Runs* runs_ = nullptr;
  const char *key_ = nullptr, *value_ = nullptr;
  int64_t row_bytes_ = 0, next_ = 0, left_ = 0;
};

// Returns the largest magnitude.
TTS_TARGET_AVX512_BF16 float copy_keys(const BF16* const* rows, int64_t tokens, int64_t dim, BF16* keys, int64_t stride,
                                       Ahead& ahead) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t t = 0; t < tokens; ++t, keys += stride) {
    for (int64_t d = 0; d < dim; d += 32) {
      const __m512i key = load_pairs(rows[t] + d, dim - d);
      most = larger(most, key);
      _mm512_store_si512(keys + d, key);
    }
    if (t % 4 == 0) ahead.ask();
  }
  return largest_of(most);
}

// values[d][token] for the tokens of whole chunks, those behind `tokens` being 0. False if an infinity or a NaN is among them.
TTS_TARGET_AVX512_BF16 bool transpose_values(const BF16* const* rows, int64_t tokens, int64_t dim, BF16* values, Ahead& ahead) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t t = 0; t < tokens; t += kTileDepth)
    for (int64_t d = 0; d < dim; d += 32) {
      const auto row = [&](int64_t i) __attribute__((target("arch=x86-64-v4,avx512bf16"))) {
        return i < tokens ? load_pairs(rows[i] + d, dim - d) : _mm512_setzero_si512();
      };
      // Interleaving two rows of 32 works within each 128 bits: d 0-3, 8-11, 16-19, 24-27 come first, the others second.
      __m512i first[16], second[16];
      for (int pair = 0; pair < 16; ++pair) {
        const __m512i a = row(t + 2 * pair), b = row(t + 2 * pair + 1);
        most = larger(larger(most, a), b);
        first[pair] = _mm512_unpacklo_epi16(a, b);
        second[pair] = _mm512_unpackhi_epi16(a, b);
        if (pair % 2 == 0) ahead.ask();
      }
      BF16* to = values + d * kBlockTokens + t;
      transpose(first);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + (i / 4 * 8 + i % 4) * kBlockTokens, first[i]);
      transpose(second);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + (i / 4 * 8 + 4 + i % 4) * kBlockTokens, second[i]);
    }
  return std::isfinite(largest_of(most));
}

// An infinity or a NaN among the values. A weight of 0 does not silence it, so it is kept out of the products of whole tiles.
struct OddValue {
  int16_t token, d;
  float value;
};

// Moves the odd values of a block to `odd` and returns their number.
int64_t take_out_odd_values(BF16* values, int64_t tokens, int64_t dim, OddValue* odd) {
  int64_t count = 0;
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t t = 0; t < tokens; ++t) {
      BF16& value = values[d * kBlockTokens + t];
      if ((value.bits & 0x7F80) != 0x7F80) continue;
      odd[count++] = {static_cast<int16_t>(t), static_cast<int16_t>(d), load1(&value)};
      value.bits = 0;
    }
  return count;
}

}  // namespace
}  // namespace tts

#endif
