// The products of attend in bfloat16, with AMX tiles or dot products. Of attend_bf16.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/simd.h"
#include "common/tiles.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

struct Left {
  const BF16* rows;
  int64_t row_size, tile_size;  // elements
};

// c[i] (+)= a[i] @ b for tiles i of 16 rows x (32 * depth) and b [depth][16 pairs][16 lanes][2].
struct Product {
  Left a;
  int64_t tiles;
  const BF16* b;
  int64_t depth;
  float* c;
  bool adds;
};

// Products that are made a tile at a time beside other work, in the order in which they were added: the core takes up the other
// work again after one tile product, but not after four. Between begin and finish the tiles are theirs: 0 to 3 sums, 4 and 5 of
// `a`, 6 and 7 of `b` in turn.
class TileStream {
 public:
  using Session = TileSession;
  static constexpr bool kTakesEight = true;

  void begin() { first_ = last_ = 0; }

  void add(const Product& p) {
    if (p.tiles == 0) return;
    if (p.depth == 0) return void(std::fill_n(p.c, p.tiles * kSum, 0.0f));  // scores of heads without elements
    products_[last_++] = p;
    if (last_ == 1) open_sums(0);
  }

  int64_t num_steps() const {
    int64_t steps = 0;
    for (int64_t i = first_; i < last_; ++i) steps += products_[i].tiles * products_[i].depth;
    return steps;
  }

  // One tile of `a` times one of `b`, and the loads for the next step, which does not wait for them then.
  TTS_TARGET_AMX TTS_INLINE void step() {
    if (k_ == 0 && sum_ == 0) begin_sums();
    switch (sum_ + 4 * (k_ % 2)) {
      case 0: _tile_dpbf16ps(0, 4, 6); break;
      case 1: _tile_dpbf16ps(1, 5, 6); break;
      case 2: _tile_dpbf16ps(2, 4, 6); break;
      case 3: _tile_dpbf16ps(3, 5, 6); break;
      case 4: _tile_dpbf16ps(0, 4, 7); break;
      case 5: _tile_dpbf16ps(1, 5, 7); break;
      case 6: _tile_dpbf16ps(2, 4, 7); break;
      default: _tile_dpbf16ps(3, 5, 7);
    }
    if (++sum_ < num_sums_) {
      a_ += products_[first_].a.tile_size;
      return load_a();
    }
    sum_ = 0;
    if (++k_ < products_[first_].depth) return load_depth();
    end_sums();
  }

  // The steps that are left, a call of `beside` with each.
  template <class Beside>
  TTS_TARGET_AMX void finish(Beside&& beside) {
    for (; first_ < last_; beside()) step();
  }

 private:
  static constexpr int64_t kMostSums = 4, kSum = kTileRows * kLanes;

  // The next sums of the product at hand, from a tile of `a` on.
  void open_sums(int64_t tile) {
    tile_ = tile;
    num_sums_ = std::min(products_[first_].tiles - tile, kMostSums);
    k_ = sum_ = 0;
  }

  TTS_TARGET_AMX TTS_INLINE void begin_sums() {
    const Product& p = products_[first_];
    const float* c = p.c + tile_ * kSum;
    if (!p.adds) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, c, 64);
      if (num_sums_ > 1) _tile_loadd(1, c + kSum, 64);
      if (num_sums_ > 2) _tile_loadd(2, c + 2 * kSum, 64);
      if (num_sums_ > 3) _tile_loadd(3, c + 3 * kSum, 64);
    }
    load_depth();
  }

  TTS_TARGET_AMX TTS_INLINE void load_depth() {
    const Product& p = products_[first_];
    const BF16* b = p.b + k_ * (kTileBytes / 2);
    if (k_ % 2 == 0)
      _tile_loadd(6, b, 64);
    else
      _tile_loadd(7, b, 64);
    a_ = p.a.rows + tile_ * p.a.tile_size + k_ * kTileDepth;
    load_a();
  }

  TTS_TARGET_AMX TTS_INLINE void load_a() {
    const int64_t row_bytes = products_[first_].a.row_size * 2;
    if (sum_ % 2 == 0)
      _tile_loadd(4, a_, row_bytes);
    else
      _tile_loadd(5, a_, row_bytes);
  }

  TTS_TARGET_AMX TTS_INLINE void end_sums() {
    const Product& p = products_[first_];
    float* c = p.c + tile_ * kSum;
    _tile_stored(0, c, 64);
    if (num_sums_ > 1) _tile_stored(1, c + kSum, 64);
    if (num_sums_ > 2) _tile_stored(2, c + 2 * kSum, 64);
    if (num_sums_ > 3) _tile_stored(3, c + 3 * kSum, 64);
    if (tile_ + num_sums_ < p.tiles)
      open_sums(tile_ + num_sums_);
    else if (++first_ < last_)
      open_sums(0);
  }

  Product products_[2];
  int64_t first_ = 0, last_ = 0;                       // of the products: the one at hand, behind the last one
  int64_t tile_ = 0, num_sums_ = 0, sum_ = 0, k_ = 0;  // of the one at hand: the first tile of the sums at hand
  const BF16* a_ = nullptr;
};

// The same without tiles, each product at one go: it needs the units that the other work needs.
class DotStream {
 public:
  struct Session {};
  static constexpr bool kTakesEight = false;

  void begin() {}

  TTS_TARGET_AVX512_BF16 void add(const Product& p) {
    float* c = p.c;
    for (int64_t i = 0; i < p.tiles; ++i, c += kTileRows * kLanes) {
      __m512 sum[kTileRows];
      for (int r = 0; r < kTileRows; ++r) sum[r] = p.adds ? _mm512_load_ps(c + r * kLanes) : _mm512_setzero_ps();
      for (int64_t pair = 0; pair < p.depth * 16; ++pair) {
        const __m512i lanes = _mm512_load_si512(p.b + pair * 2 * kLanes);
        for (int r = 0; r < kTileRows; ++r) {
          int32_t both;
          std::memcpy(&both, p.a.rows + i * p.a.tile_size + r * p.a.row_size + 2 * pair, sizeof(both));
          sum[r] = _mm512_dpbf16_ps(sum[r], reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                                    reinterpret_cast<const __m512bh&>(lanes));
        }
      }
      for (int r = 0; r < kTileRows; ++r) _mm512_store_ps(c + r * kLanes, sum[r]);
    }
  }

  int64_t num_steps() const { return 0; }
  void step() {}
  template <class Beside>
  void finish(Beside&&) {}
};

}  // namespace
}  // namespace tts

#endif
