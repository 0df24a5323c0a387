// The products of attend in bfloat16: c[i] (+)= a[i] @ b for tiles i of 16 rows x (32 * depth) and b [depth][16 pairs][16
// lanes][2], with AMX tiles or dot products. Of attend_bf16.cpp alone.
#pragma once

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

template <int TILES>
TTS_TARGET_AMX inline void multiply_some_tiles(const Left& a, const BF16* b, int64_t depth, float* c, bool adds) {
  constexpr int64_t kSum = kTileRows * kLanes;
  if (adds) {
    _tile_loadd(0, c, 64);
    if (TILES > 1) _tile_loadd(1, c + kSum, 64);
    if (TILES > 2) _tile_loadd(2, c + 2 * kSum, 64);
    if (TILES > 3) _tile_loadd(3, c + 3 * kSum, 64);
  } else {
    _tile_zero(0);
    if (TILES > 1) _tile_zero(1);
    if (TILES > 2) _tile_zero(2);
    if (TILES > 3) _tile_zero(3);
  }
  const int64_t row_bytes = a.row_size * 2;
  const BF16* rows = a.rows;
  for (int64_t k = 0; k < depth; ++k, rows += kTileDepth, b += kTileBytes / 2) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, rows, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (TILES > 1) {
      _tile_loadd(5, rows + a.tile_size, row_bytes);
      _tile_dpbf16ps(1, 5, 6);
    }
    if (TILES > 2) {
      _tile_loadd(7, rows + 2 * a.tile_size, row_bytes);
      _tile_dpbf16ps(2, 7, 6);
    }
    if (TILES > 3) {
      _tile_loadd(4, rows + 3 * a.tile_size, row_bytes);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  _tile_stored(0, c, 64);
  if (TILES > 1) _tile_stored(1, c + kSum, 64);
  if (TILES > 2) _tile_stored(2, c + 2 * kSum, 64);
  if (TILES > 3) _tile_stored(3, c + 3 * kSum, 64);
}

struct Tiles {
  using Session = TileSession;

  TTS_TARGET_AMX static void multiply(Left a, int64_t tiles, const BF16* b, int64_t depth, float* c, bool adds) {
    for (; tiles >= 4; tiles -= 4, a.rows += 4 * a.tile_size, c += 4 * kTileRows * kLanes)
      multiply_some_tiles<4>(a, b, depth, c, adds);
    if (tiles == 1) multiply_some_tiles<1>(a, b, depth, c, adds);
    if (tiles == 2) multiply_some_tiles<2>(a, b, depth, c, adds);
    if (tiles == 3) multiply_some_tiles<3>(a, b, depth, c, adds);
  }
};

struct Dots {
  struct Session {};

  TTS_TARGET_AVX512_BF16 static void multiply(const Left& a, int64_t tiles, const BF16* b, int64_t depth, float* c, bool adds) {
    for (int64_t i = 0; i < tiles; ++i, c += kTileRows * kLanes) {
      __m512 sum[kTileRows];
      for (int r = 0; r < kTileRows; ++r) sum[r] = adds ? _mm512_load_ps(c + r * kLanes) : _mm512_setzero_ps();
      for (int64_t pair = 0; pair < depth * 16; ++pair) {
        const __m512i lanes = _mm512_load_si512(b + pair * 2 * kLanes);
        for (int r = 0; r < kTileRows; ++r) {
          int32_t both;
          std::memcpy(&both, a.rows + i * a.tile_size + r * a.row_size + 2 * pair, sizeof(both));
          sum[r] = _mm512_dpbf16_ps(sum[r], reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                                    reinterpret_cast<const __m512bh&>(lanes));
        }
      }
      for (int r = 0; r < kTileRows; ++r) _mm512_store_ps(c + r * kLanes, sum[r]);
    }
  }
};

}  // namespace
}  // namespace tts

#endif
