// linear in products of bfloat16 pairs: AMX tiles, or dot products.
//
// A thread takes consecutive strips of four panels of 16 columns; the next panels are on their way to L2 while some are worked
// on. Invariant: an element of the output is summed over k in a fixed order, with tiles in blocks of 32; no other row or column
// enters it.
#include <cstring>

#include "common/isa.h"
#include "common/tiles.h"
#include "cpu/linear.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kStageBlocks = 32;        // of a panel: what is asked for at a time
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

TTS_TARGET_AVX512_BF16 void panel_of_dots(const Linear& p, const PaddedRows<BF16>& x, int64_t m0, int64_t m1, int64_t panel) {
  constexpr int kMost = 24;
  alignas(64) float sums[kMost * kPanelColumns];
  const BF16* weight = static_cast<const BF16*>(p.weight) + panel * p.depth() * kBlockSize;
  for (int64_t m = m0, rows; m < m1; m += rows) {
    const BF16* from = x.rows + m * x.stride;
    rows = m + kMost <= m1 ? kMost : m + 6 <= m1 ? 6 : 1;
    if (rows == kMost)
      dot_rows<kMost>(from, x.stride, weight, p.depth(), sums);
    else if (rows == 6)
      dot_rows<6>(from, x.stride, weight, p.depth(), sums);
    else
      dot_rows<1>(from, x.stride, weight, p.depth(), sums);
    write_sums(p, sums, m, rows, panel * kPanelColumns);
  }
}

void strip_of_dots(const Linear& p, const PaddedRows<BF16>& x, int64_t m0, int64_t m1, int64_t panel, int64_t num_panels) {
  for (; num_panels > 0; --num_panels, ++panel) panel_of_dots(p, x, m0, m1, panel);
}

// Asks for `blocks` blocks of each of PANELS panels while as many are worked on, in eight places at once: one place alone leaves
// the prefetcher idle at every 4 KB, and reaches two thirds of the DRAM rate. Step k of `blocks` asks for its share of each.
template <int PANELS>
TTS_INLINE void prefetch_panels(const BF16* next, int64_t panel_size, int64_t blocks, int64_t k) {
  constexpr int64_t kPlaces = 8 / PANELS, kLines = kBlockSize / 32 / kPlaces;
  for (int64_t panel = 0; panel < PANELS; ++panel, next += panel_size)
    for (int64_t place = 0; place < kPlaces; ++place)
      for (int64_t i = 0; i < kLines; ++i) __builtin_prefetch(next + ((place * blocks + k) * kLines + i) * 32, 0, 2);
}

// sums[p][0:16*ROWS] = x[0:16*ROWS] @ panels[p]: ROWS x PANELS <= 4 tiles of sums.
template <int ROWS, int PANELS>
TTS_TARGET_AMX inline void multiply_tiles(const BF16* x, int64_t x_stride, const BF16* const* panels, int64_t depth,
                                          const BF16* next, float* sums) {
  const int64_t row_bytes = x_stride * 2, tile_size = kTileRows * x_stride;
  constexpr int64_t kSum = kTileRows * kPanelColumns;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int64_t stage = in_blocks(depth, std::max<int64_t>(1, in_blocks(depth, kStageBlocks)));
  const BF16* following = panels[0];
  for (int64_t k = 0, at = 0, within = stage; k < depth; ++k, ++within, at += kBlockSize, x += kPanelDepth) {
    if (within == stage) {
      within = 0;
      following = k + stage < depth ? panels[0] + at + stage * kBlockSize : next;
    }
    prefetch_panels<PANELS>(following, depth * kBlockSize, stage, within);
    if constexpr (PANELS == 4) {
      _tile_loadd(4, x, row_bytes);
      _tile_loadd(5, panels[0] + at, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, panels[1] + at, 64);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, panels[2] + at, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, panels[3] + at, 64);
      _tile_dpbf16ps(3, 4, 5);
    } else if constexpr (PANELS == 2) {
      _tile_loadd(4, x, row_bytes);
      _tile_loadd(6, panels[0] + at, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, x + tile_size, row_bytes);
      _tile_dpbf16ps(1, 5, 6);
      _tile_loadd(7, panels[1] + at, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_loadd(6, panels[0] + at, 64);
      _tile_loadd(4, x, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, x + tile_size, row_bytes);
      _tile_dpbf16ps(1, 5, 6);
      _tile_loadd(7, x + 2 * tile_size, row_bytes);
      _tile_dpbf16ps(2, 7, 6);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSum, 64);
  _tile_stored(2, sums + 2 * kSum, 64);
  if (ROWS != 3) _tile_stored(3, sums + 3 * kSum, 64);
}

// The strip's panels for rows m.., as many panels at a time as the rows leave tiles for.
template <int ROWS>
TTS_TARGET_AMX void strip_of_tiles(const Linear& p, const PaddedRows<BF16>& x, int64_t m, int64_t rows, int64_t first_panel,
                                   int64_t num_panels) {
  constexpr int64_t kPanels = ROWS > 2 ? 1 : kStrip / ROWS;
  alignas(64) float sums[4 * kTileRows * kPanelColumns];
  const int64_t size = p.depth() * kBlockSize;
  const BF16* strip = static_cast<const BF16*>(p.weight) + first_panel * size;
  for (int64_t panel = 0; panel < num_panels; panel += kPanels) {
    const BF16* panels[kPanels];
    for (int64_t i = 0; i < kPanels; ++i) panels[i] = strip + std::min(panel + i, num_panels - 1) * size;
    const BF16* next = strip + (panel + kPanels) * size;
    multiply_tiles<ROWS, kPanels>(x.rows + m * x.stride, x.stride, panels, p.depth(), next, sums);
    for (int64_t i = 0; i < std::min(kPanels, num_panels - panel); ++i)
      write_sums(p, sums + i * ROWS * kTileRows * kPanelColumns, m, rows, (first_panel + panel + i) * kPanelColumns);
  }
}

TTS_TARGET_AMX void strip_of_tiles(const Linear& p, const PaddedRows<BF16>& x, int64_t m0, int64_t m1, int64_t panel,
                                   int64_t num_panels) {
  for (int64_t m = m0, rows; m < m1; m += rows) {
    rows = m1 - m > 3 * kTileRows ? 2 * kTileRows : m1 - m;  // two by two tiles need the fewest loads for a product
    switch (in_blocks(rows, kTileRows)) {
      case 1: strip_of_tiles<1>(p, x, m, rows, panel, num_panels); break;
      case 2: strip_of_tiles<2>(p, x, m, rows, panel, num_panels); break;
      default: strip_of_tiles<3>(p, x, m, rows, panel, num_panels);
    }
  }
}
void copy_row(const Linear& p, int64_t m, BF16* to) {
  std::memcpy(to, static_cast<const BF16*>(p.x) + m * p.x_stride, static_cast<size_t>(p.K) * 2);
}

}  // namespace

void linear_in_bf16(const Linear& p) {
  const auto copy = [&](int64_t m, BF16* to) { copy_row(p, m, to); };
  if (has_bf16_tiles())
    for_each_strip<BF16, TileSession>(p, copy, [&](auto&&... at) { strip_of_tiles(p, at...); });
  else
    for_each_strip<BF16, NoSession>(p, copy, [&](auto&&... at) { strip_of_dots(p, at...); });
}

}  // namespace tts

#else

namespace tts {
void linear_in_bf16(const Linear& p) { linear_in_float32(p, TTS_BF16); }
}  // namespace tts

#endif
