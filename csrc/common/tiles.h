// The AMX tile unit: eight registers of 16 rows x 64 bytes. The rest of a kernel is ordinary code with AVX-512.
//
// A tile is 16 x 32 bfloat16 on the left of a product, 16 pairs x 16 columns x 2 on its right, 16 x 16 float32 as its sum.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 12)
#define TTS_HAS_X86_BF16 1
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 on its own _mm512_undefined
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstdint>

#define TTS_TARGET_AVX512_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")))
#define TTS_TARGET_AMX __attribute__((target("arch=x86-64-v4,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")))

namespace tts {

constexpr int64_t kTileRows = 16;   // of a left tile and of a sum
constexpr int64_t kTileDepth = 32;  // bfloat16 of a left tile's row
constexpr int64_t kTileBytes = 1024;

// Instructions between two that write tiles: where those follow each other at once they hold up the core.
template <int COUNT = 8>
inline __attribute__((always_inline)) void apart() {
  __asm__ volatile(".rept %c0\n\tnop\n\t.endr" : : "i"(COUNT));
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileConfig kFullTiles;  // in memory for good: to some compilers the instruction reads its first word only

// All eight tiles of the calling thread at full size for as long as it lives. No other tile code may run meanwhile, but one that
// leaves them as it found them.
class TileSession {
 public:
  TTS_TARGET_AMX TileSession() { _tile_loadconfig(&kFullTiles); }
  TTS_TARGET_AMX ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

}  // namespace tts
#endif
