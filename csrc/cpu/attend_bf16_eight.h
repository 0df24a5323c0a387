// attend in bfloat16 where few lanes read a block of tokens: a branch's own. Of attend_bf16.cpp alone.
//
// Laying out a block costs as much as sixteen lanes' work on it, so nothing is: keys are read where they lie, values are only
// interleaved, two tokens at a time, and the weights of eight lanes are what is transposed: sums[lane, d] += weights @ V. Each
// sum meets the same products in the same order as sums[d, lane] += V^T @ weights, so its bits are the same.
//
// Interleaving two rows works within each 128 bits, so of 32 elements d 0-3, 8-11, 16-19, 24-27 come first, the others second:
// the order in which the sums lie, too.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/simd.h"
#include "common/sizes.h"
#include "common/tiles.h"
#include "cpu/attend_bf16_layout.h"
#include "cpu/attend_bf16_weights.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kEight = 8;

// Tiles 0 and 1: scores, 16 tokens x 8 lanes; 2: queries, 16 pairs x 8 lanes; 3: weights, 8 lanes x 32 tokens; 4 and 5: keys, 16
// tokens x 32, or values, 16 pairs x 16; 6 and 7: sums, 8 lanes x 16.
inline constexpr TileConfig kEightTiles{1, 0, {}, {32, 32, 32, 64, 64, 64, 64, 64}, {16, 16, 16, 8, 16, 16, 8, 8}};

// Keys of sixteen tokens, one behind the other. What counts are `tokens` of them behind the first `skipped`: those of the block
// from its token `at` on.
struct KeyTile {
  const BF16* rows;
  int64_t stride, skipped, at, tokens;  // stride in elements
};

// sums[d][16 lanes] become sums[lane][place of d], or the other way round.
TTS_TARGET_AVX512_BF16 inline void turn_sums(float* sums, int64_t dim, bool to_lanes, float* scratch) {
  const int64_t size = round_up(dim, 32);
  for (int64_t place = 0; place < size; place += kLanes) {
    const int64_t d = place / 32 * 32 + place / 16 % 2 * 4;  // of the first row; the others are d + 1, 2, 3, 8, 9, ...
    __m512i m[16];
    for (int64_t i = 0; i < 16; ++i)
      m[i] = _mm512_load_si512(sums + (to_lanes ? (d + i / 4 * 8 + i % 4) * kLanes : i * size + place));
    transpose(m);
    for (int64_t i = 0; i < 16; ++i)
      _mm512_store_si512(scratch + (to_lanes ? i * size + place : (d + i / 4 * 8 + i % 4) * kLanes), m[i]);
  }
  std::memcpy(sums, scratch, static_cast<size_t>(size * kLanes) * sizeof(float));
}

// values[d / 32][2][16 pairs][16 d][2] of a chunk of 32 tokens, as right sides of products, what lies behind `tokens` being 0. A
// unit is eight pairs of 32 elements.
class Interleaver {
 public:
  Interleaver(const Rows& rows, int64_t tokens, int64_t dim, BF16* values)
      : rows_(rows.at), tokens_(tokens), dim_(dim), to_(values) {}

  TTS_TARGET_AVX512_BF16 TTS_INLINE void step() {
    if (chunk_ >= tokens_ || dim_ == 0) return;
    run(chunk_ + half_ * 16, d_, to_ + half_ * 8 * 32);
    half_ = 1 - half_;
    if (half_ == 1) return;
    to_ += kTileBytes;  // of two tiles, in elements
    if ((d_ += 32) < dim_) return;
    d_ = 0;
    chunk_ += 32;
  }

  TTS_TARGET_AVX512_BF16 void finish() {
    while (chunk_ < tokens_ && dim_ > 0) step();
  }

  // Whether no value was infinite or NaN.
  TTS_TARGET_AVX512_BF16 bool all_finite() const { return std::isfinite(largest_of(most_)); }

 private:
  TTS_TARGET_AVX512_BF16 TTS_INLINE void run(int64_t t, int64_t d, BF16* to) {
    if (t + 16 <= tokens_ && d + 32 <= dim_)
      for (int pair = 0; pair < 8; ++pair)
        put(_mm512_loadu_si512(rows_[t + 2 * pair] + d), _mm512_loadu_si512(rows_[t + 2 * pair + 1] + d), to + pair * 32);
    else
      for (int pair = 0; pair < 8; ++pair) put(row(t + 2 * pair, d), row(t + 2 * pair + 1, d), to + pair * 32);
  }

  TTS_TARGET_AVX512_BF16 TTS_INLINE void put(__m512i a, __m512i b, BF16* to) {
    most_ = larger(larger(most_, a), b);
    _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
    _mm512_store_si512(to + kTileBytes / 2, _mm512_unpackhi_epi16(a, b));
  }

  TTS_TARGET_AVX512_BF16 __m512i row(int64_t t, int64_t d) const {
    return t < tokens_ ? load_pairs(rows_[t] + d, dim_ - d) : _mm512_setzero_si512();
  }

  const BF16* const* const rows_;
  const int64_t tokens_, dim_;
  BF16* to_;
  int64_t chunk_ = 0, d_ = 0, half_ = 0;  // of the next unit
  __m512i most_ = {};
};

// scores[token][8] = keys @ queries for the tokens of the tiles, queries being eight lanes of [D / 2][16][2]; a call of beside()
// with each product.
template <class Beside>
TTS_TARGET_AMX TTS_INLINE void score_eight(const KeyTile* tiles, int64_t num_tiles, const BF16* queries, int64_t dim,
                                           float* scores, Beside&& beside) {
  alignas(64) float aside[16 * kEight];
  // What lies behind the tokens of a tile is the next one's place, or that of tokens that no lane sees.
  const auto place = [&](const KeyTile& tile) { return tile.skipped == 0 ? scores + tile.at * kEight : aside; };
  const auto take_over = [&](const KeyTile& tile) TTS_TARGET_AMX {
    for (int64_t i = 0; tile.skipped > 0 && i < tile.tokens; ++i)
      _mm256_store_ps(scores + (tile.at + i) * kEight, _mm256_load_ps(aside + (tile.skipped + i) * kEight));
  };
  for (int64_t i = 0; i < num_tiles; i += 2) {
    const KeyTile &first = tiles[i], &second = tiles[i + 1 < num_tiles ? i + 1 : i];  // the last of an odd number: twice
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t d = 0; d < dim; d += 32) {
      _tile_loadd(2, queries + d * kLanes, 64);
      _tile_loadd(4, first.rows + d, first.stride * 2);
      _tile_dpbf16ps(0, 4, 2);
      beside();
      _tile_loadd(5, second.rows + d, second.stride * 2);
      _tile_dpbf16ps(1, 5, 2);
      beside();
    }
    _tile_stored(0, place(first), 32);
    take_over(first);
    _tile_stored(1, place(second), 32);
    take_over(second);
  }
}

// sums[8][D in chunks] += weights @ values.
TTS_TARGET_AMX inline void sum_eight(const BF16* weights, const BF16* values, int64_t tokens, int64_t dim, float* sums,
                                     Ahead& ahead) {
  const int64_t size = round_up(dim, 32), row_bytes = size * 4;
  for (int64_t d = 0; d < dim; d += 32) {
    _tile_loadd(6, sums + d, row_bytes);
    _tile_loadd(7, sums + d + kLanes, row_bytes);
    for (int64_t t = 0; t < tokens; t += 32) {
      const BF16* tile = values + t * size + d * kTileDepth;
      _tile_loadd(3, weights + t * kEight, 64);
      _tile_loadd(4, tile, 64);
      _tile_dpbf16ps(6, 3, 4);
      ahead.ask(3);
      _tile_loadd(5, tile + kTileBytes / 2, 64);
      _tile_dpbf16ps(7, 3, 5);
      ahead.ask(3);
    }
    _tile_stored(6, sums + d, row_bytes);
    _tile_stored(7, sums + d + kLanes, row_bytes);
  }
}

// The largest score of each lane, twice, and the largest magnitude among those that are seen: infinite or NaN if one of them is.
// With HIDES, what lane l does not see (tokens from visible[l] on) becomes -inf.
template <bool HIDES>
TTS_TARGET_AVX512_BF16 inline __m512 largest_of_eight(float* scores, int64_t tokens, __m512i visible, float* magnitude) {
  const __m512 hidden = _mm512_set1_ps(-INFINITY);
  const __m512i magnitude_bits = _mm512_set1_epi32(0x7FFFFFFF);
  __m512i token = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  __m512 most[2] = {hidden, hidden};
  __m512i farthest = _mm512_setzero_si512();
  for (int64_t t = 0; t < tokens; t += 4)
    for (int i = 0; i < 2; ++i) {
      float* at = scores + (t + 2 * i) * kEight;
      __m512 score = _mm512_load_ps(at);
      if (HIDES) {
        const __mmask16 sees = _mm512_cmpgt_epi32_mask(visible, token);
        farthest = _mm512_mask_max_epu32(farthest, sees, farthest, _mm512_and_si512(_mm512_castps_si512(score), magnitude_bits));
        score = _mm512_mask_mov_ps(hidden, sees, score);
        _mm512_store_ps(at, score);
        token = _mm512_add_epi32(token, _mm512_set1_epi32(2));
      } else {
        farthest = _mm512_max_epu32(farthest, _mm512_and_si512(_mm512_castps_si512(score), magnitude_bits));
      }
      most[i] = _mm512_max_ps(most[i], score);
    }
  *magnitude = bit_cast<float>(_mm512_reduce_max_epu32(farthest));
  const __m512 larger = _mm512_max_ps(most[0], most[1]);
  return _mm512_max_ps(larger, _mm512_shuffle_f32x4(larger, larger, 0x4E));
}

// weights[chunk][lane][32 tokens] = 2^(factor * score - maximum), and their sums to total: [even pairs][8], [odd pairs][8].
TTS_TARGET_AVX512_BF16 inline __m512 weigh_eight(const float* scores, int64_t tokens, const Exponents& exponents, __m512 total,
                                                 BF16* weights, Ahead& ahead) {
  const __m512i ones = _mm512_set1_epi16(0x3F80);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t t = 0; t < tokens; t += 32, scores += 32 * kEight, weights += 32 * kEight) {
    __m512i m[8], n[8];
    for (int i = 0; i < 8; ++i) {
      const __m512 a = _mm512_load_ps(scores + i * 32), b = _mm512_load_ps(scores + i * 32 + 16);
      ahead.ask();
      m[i] = weights_of(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE), exponents);
      total = _mm512_dpbf16_ps(total, reinterpret_cast<const __m512bh&>(m[i]), reinterpret_cast<const __m512bh&>(ones));
    }
    // m[i] holds pairs 2 * i and 2 * i + 1 of eight lanes. Taking the words at even and at odd places of two apart, three times,
    // brings the bits of the lane from the place to the register, those of the pair the other way.
    const auto take_apart = [&](const __m512i* from, __m512i* to) __attribute__((target("arch=x86-64-v4"), always_inline)) {
      for (int i = 0; i < 4; ++i) {
        to[i] = _mm512_permutex2var_epi32(from[2 * i], even, from[2 * i + 1]);
        to[4 + i] = _mm512_permutex2var_epi32(from[2 * i], odd, from[2 * i + 1]);
      }
    };
    take_apart(m, n);
    take_apart(n, m);
    take_apart(m, n);
    for (int lane = 0; lane < kEight; ++lane) _mm512_store_si512(weights + lane * kTileDepth, n[lane]);
  }
  return total;
}

}  // namespace
}  // namespace tts

#endif
