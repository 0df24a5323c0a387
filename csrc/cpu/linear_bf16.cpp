// linear in products of bfloat16 pairs: AMX tiles, or dot products.
//
// A thread takes consecutive strips of panels of 16 columns; what it reads next is on its way to L2 while it multiplies.
// Invariant: an element of the output is summed over k in a fixed order, with tiles in blocks of 32; no other row or column
// enters it.
#include <cstring>

#include "common/isa.h"
#include "common/tiles.h"
#include "cpu/linear.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kStageBlocks = 32;        // of a panel: what is asked for at a time
constexpr int64_t kPlaces = 8;              // read from DRAM at once: one alone leaves the prefetcher idle at every 4 KB
constexpr int64_t kStreamBytes = 1 << 21;   // of an output: more does not stay in L2 beside the weights
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

// The same for two panels side by side, all of whose columns exist: whole cache lines, past the caches where STREAM.
template <bool STREAM>
TTS_TARGET_AVX512_BF16 void write_pair(const Linear& p, const float* left, const float* right, int64_t m0, int64_t rows,
                                       int64_t n0) {
  const auto* bias = static_cast<const BF16*>(p.bias) + n0;
  const __m512 left_bias = p.bias == nullptr ? _mm512_setzero_ps() : bit_cast<__m512>(load<kLanes>(bias));
  const __m512 right_bias = p.bias == nullptr ? _mm512_setzero_ps() : bit_cast<__m512>(load<kLanes>(bias + kPanelColumns));
  for (int64_t m = 0; m < rows; ++m) {
    const __m512 low = _mm512_add_ps(_mm512_load_ps(left + m * kPanelColumns), left_bias);
    const __m512 high = _mm512_add_ps(_mm512_load_ps(right + m * kPanelColumns), right_bias);
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    void* to = static_cast<BF16*>(p.out) + (m0 + m) * p.N + n0;
    if (STREAM)
      _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<const __m512i&>(both));
    else
      _mm512_storeu_si512(to, reinterpret_cast<const __m512i&>(both));
  }
}

// Written through the caches, each line of a large output would be read from memory before.
bool streams(const Linear& p) {
  return p.M * p.N * 2 > kStreamBytes && p.N % 32 == 0 && reinterpret_cast<std::uintptr_t>(p.out) % 64 == 0;
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

void strip_of_dots(const Linear& p, const PaddedRows<BF16>& x, const Strip& s) {
  for (int64_t i = 0; i < s.num_panels; ++i) panel_of_dots(p, x, s.m0, s.m1, s.panel + i);
}

// Asks for the blocks of PANELS panels a stage ahead, for a strip whose rows are multiplied at one go: DRAM is what it waits for.
template <int PANELS>
class NextBlocks {
 public:
  // The blocks behind the panels' last ones are those at `behind`.
  NextBlocks(const BF16* panels, int64_t depth, const BF16* behind)
      : at_(panels),
        depth_(depth),
        stage_(in_blocks(depth, std::max<int64_t>(1, in_blocks(depth, kStageBlocks)))),
        within_(stage_),
        behind_(behind) {}

  TTS_INLINE void step() {
    if (within_ == stage_) {
      within_ = 0;
      done_ += stage_;
      following_ = done_ < depth_ ? at_ + done_ * kBlockSize : behind_;
    }
    constexpr int64_t kPlacesEach = kPlaces / PANELS, kLines = kBlockSize / 32 / kPlacesEach;
    for (int64_t panel = 0; panel < PANELS; ++panel)
      for (int64_t place = 0; place < kPlacesEach; ++place)
        for (int64_t i = 0; i < kLines; ++i)
          __builtin_prefetch(following_ + panel * depth_ * kBlockSize + ((place * stage_ + within_) * kLines + i) * 32, 0, 2);
    ++within_;
  }

 private:
  const BF16* at_;
  int64_t depth_, stage_, within_, done_ = 0;
  const BF16 *behind_, *following_ = nullptr;
};

// Asks for the next strip bit by bit while all rows are multiplied with this one: reading and multiplying take turns otherwise.
// Every other line is enough, the other half of its 128 bytes comes along.
class NextStrip {
 public:
  NextStrip(const BF16* next, int64_t num_blocks, int64_t num_steps)
      : next_(next),
        pairs_(num_blocks * kBlockSize / 64),
        place_(in_blocks(pairs_, kPlaces)),
        count_(in_blocks(pairs_, std::max<int64_t>(1, num_steps))) {}

  TTS_INLINE void step() {
    for (const int64_t end = std::min(at_ + count_, pairs_); at_ < end; ++at_)
      __builtin_prefetch(next_ + (at_ % kPlaces * place_ + at_ / kPlaces) * 64, 0, 2);
  }

 private:
  const BF16* next_;
  int64_t pairs_, place_, count_, at_ = 0;
};

// sums[p][0:16*ROWS] = x[0:16*ROWS] @ panels[p]: ROWS x PANELS <= 4 tiles of sums.
template <int ROWS, int PANELS, class Ahead>
TTS_TARGET_AMX inline void multiply_tiles(const BF16* x, int64_t x_stride, const BF16* const* panels, int64_t depth, Ahead& ahead,
                                          float* sums) {
  const int64_t row_bytes = x_stride * 2, tile_size = kTileRows * x_stride;
  constexpr int64_t kSum = kTileRows * kPanelColumns;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0, at = 0; k < depth; ++k, at += kBlockSize, x += kPanelDepth) {
    ahead.step();
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

constexpr int64_t panels_beside(int64_t tile_rows) { return tile_rows > 2 ? 1 : kStrip / tile_rows; }

// The strip's panels for rows m.., as many panels at a time as the rows leave tiles for. `ahead_of(panels, behind)` gives what
// asks for the next blocks during the product with some panels.
template <int ROWS, class AheadOf>
TTS_TARGET_AMX void rows_of_tiles(const Linear& p, const PaddedRows<BF16>& x, int64_t m, int64_t rows, const Strip& s,
                                  AheadOf&& ahead_of) {
  constexpr int64_t kPanels = panels_beside(ROWS);
  alignas(64) float sums[4 * kTileRows * kPanelColumns];
  const int64_t size = p.depth() * kBlockSize;
  const BF16* strip = static_cast<const BF16*>(p.weight) + s.panel * size;
  for (int64_t panel = 0; panel < s.num_panels; panel += kPanels) {
    const BF16* panels[kPanels];
    for (int64_t i = 0; i < kPanels; ++i) panels[i] = strip + std::min(panel + i, s.num_panels - 1) * size;
    auto&& ahead = ahead_of(panels[0], strip + (panel + kPanels) * size);
    multiply_tiles<ROWS, kPanels>(x.rows + m * x.stride, x.stride, panels, p.depth(), ahead, sums);
    const int64_t count = std::min(kPanels, s.num_panels - panel);
    for (int64_t i = 0; i < count; i += 2) {
      constexpr int64_t kSums = ROWS * kTileRows * kPanelColumns;
      const float* left = sums + i * kSums;
      const int64_t n0 = (s.panel + panel + i) * kPanelColumns;
      if (i + 1 == count || n0 + 2 * kPanelColumns > p.N) {
        for (int64_t j = i; j < std::min(i + 2, count); ++j)
          write_sums(p, sums + j * kSums, m, rows, (s.panel + panel + j) * kPanelColumns);
      } else if (streams(p)) {
        write_pair<true>(p, left, left + kSums, m, rows, n0);
      } else {
        write_pair<false>(p, left, left + kSums, m, rows, n0);
      }
    }
  }
}

// Up to three tiles of rows, at one go.
template <int ROWS>
TTS_TARGET_AMX void strip_of_tiles(const Linear& p, const PaddedRows<BF16>& x, const Strip& s) {
  rows_of_tiles<ROWS>(p, x, s.m0, s.m1 - s.m0, s, [&](const BF16* panels, const BF16* behind) {
    return NextBlocks<panels_beside(ROWS)>(panels, p.depth(), behind);
  });
}

// More rows: two by two tiles, which need the fewest loads for a product, over and over.
TTS_TARGET_AMX void strip_of_many_tiles(const Linear& p, const PaddedRows<BF16>& x, const Strip& s) {
  const int64_t steps = in_blocks(s.m1 - s.m0, 2 * kTileRows) * in_blocks(s.num_panels, 2) * p.depth();
  const BF16* behind = static_cast<const BF16*>(p.weight) + (s.panel + s.num_panels) * p.depth() * kBlockSize;
  NextStrip next(behind, s.num_next * p.depth(), steps);
  const auto ahead_of = [&](const BF16*, const BF16*) -> NextStrip& { return next; };
  for (int64_t m = s.m0; m < s.m1; m += 2 * kTileRows) {
    const int64_t rows = std::min(2 * kTileRows, s.m1 - m);
    if (rows > kTileRows)
      rows_of_tiles<2>(p, x, m, rows, s, ahead_of);
    else
      rows_of_tiles<1>(p, x, m, rows, s, ahead_of);
  }
}

void strip_of_tiles(const Linear& p, const PaddedRows<BF16>& x, const Strip& s) {
  switch (in_blocks(s.m1 - s.m0, kTileRows)) {
    case 1: return strip_of_tiles<1>(p, x, s);
    case 2: return strip_of_tiles<2>(p, x, s);
    case 3: return strip_of_tiles<3>(p, x, s);
    default: return strip_of_many_tiles(p, x, s);
  }
}

void copy_row(const Linear& p, int64_t m, BF16* to) {
  std::memcpy(to, static_cast<const BF16*>(p.x) + m * p.x_stride, static_cast<size_t>(p.K) * 2);
}

}  // namespace

void linear_in_bf16(const Linear& p) {
  const auto copy = [&](int64_t m, BF16* to) { copy_row(p, m, to); };
  // Where rows are many, this strip and the next, both in L2, are to leave room there for x.
  const int64_t width = p.M > 3 * kTileRows && p.depth() > 64 ? 2 : kStrip;
  if (has_bf16_tiles())
    for_each_strip<BF16, TileSession>(p, width, copy, [&](auto&&... at) { strip_of_tiles(p, at...); });
  else
    for_each_strip<BF16, NoSession>(p, kStrip, copy, [&](auto&&... at) { strip_of_dots(p, at...); });
}

}  // namespace tts

#else

namespace tts {
void linear_in_bf16(const Linear& p) { linear_in_float32(p, TTS_BF16); }
}  // namespace tts

#endif
