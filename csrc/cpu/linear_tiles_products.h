// The products of linear on the tile unit, and how they ask for what is multiplied next. Of linear_tiles.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/tiles.h"
#include "cpu/linear.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kStageBlocks = 32;  // of a panel: what is asked for at a time
constexpr int64_t kPlaces = 8;        // read from DRAM at once: one alone leaves the prefetcher idle at every 4 KB
constexpr int64_t kSoon = 2;          // blocks until what L2 holds is to be in L1
constexpr int64_t kSum = kTileRows * kPanelColumns;

// Panels of the weight from some block of k on; behind `count` the last one again.
struct Panels {
  const BF16* at[kStrip];
  int64_t count;
};

// Asks for the blocks of PANELS panels a stage ahead, for rows that are multiplied in one go: DRAM is what they wait for.
template <int PANELS>
class NextBlocks {
 public:
  // Behind the panels' last blocks come the first ones of those at `behind`.
  NextBlocks(const BF16* const* panels, int64_t depth, const BF16* const* behind)
      : depth_(depth), stage_(in_blocks(depth, std::max<int64_t>(1, in_blocks(depth, kStageBlocks)))), within_(stage_) {
    for (int64_t i = 0; i < PANELS; ++i) at_[i] = panels[i], behind_[i] = behind[i];
  }

  TTS_INLINE void step() {
    if (within_ == stage_) {
      within_ = 0;
      done_ += stage_;
      for (int64_t i = 0; i < PANELS; ++i) following_[i] = done_ < depth_ ? at_[i] + done_ * kBlockSize : behind_[i];
    }
    constexpr int64_t kPlacesEach = kPlaces / PANELS, kLines = kBlockSize / 32 / kPlacesEach;
    for (int64_t panel = 0; panel < PANELS; ++panel)
      for (int64_t place = 0; place < kPlacesEach; ++place)
        for (int64_t i = 0; i < kLines; ++i)
          __builtin_prefetch(following_[panel] + ((place * stage_ + within_) * kLines + i) * 32, 0, 2);
    ++within_;
  }

 private:
  const BF16 *at_[PANELS], *behind_[PANELS], *following_[PANELS] = {};
  int64_t depth_, stage_, within_, done_ = 0;
};

// Asks for the next strip bit by bit while all rows are multiplied with this one: reading and multiplying take turns otherwise.
// Of each page it asks for the first lines, from which the machine's prefetcher goes on: what is asked for occupies a buffer
// until it comes from DRAM, and the loads of the product at hand need those buffers.
class NextStrip {
 public:
  NextStrip(const Panels& next, int64_t num_blocks, int64_t num_steps) : next_(next), panel_bytes_(num_blocks * kBlockSize * 2) {
    begin_panel();
    count_ = in_blocks(next.count * (panel_bytes_ / kPage + 2) * kFirstLines, num_steps);
  }

  TTS_INLINE void step() {
    for (int64_t i = count_; i > 0 && panel_ < next_.count; --i) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
      if (--left_ == 0) begin_page();
    }
  }

 private:
  static constexpr int64_t kLine = 64, kPage = 4096, kFirstLines = 12;

  void begin_panel() {
    at_ = reinterpret_cast<const char*>(next_.at[panel_]);
    end_ = at_ + panel_bytes_;
    left_ = kFirstLines;
  }

  void begin_page() {
    at_ += kPage - reinterpret_cast<std::uintptr_t>(at_) % kPage;
    left_ = kFirstLines;
    if (at_ >= end_ && ++panel_ < next_.count) begin_panel();
  }

  const Panels& next_;
  const int64_t panel_bytes_;
  int64_t panel_ = 0, left_ = 0, count_;
  const char *at_ = nullptr, *end_ = nullptr;
};

// Asks for a quarter of a block, to be in L1 when it is loaded.
template <int QUARTER>
TTS_INLINE void ask_for_quarter(const BF16* block) {
  for (int i = 0; i < 4; ++i) __builtin_prefetch(block + (4 * QUARTER + i) * 32, 0, 3);
  apart<4>();
}

// sums[p][0:16*ROWS] += x[0:16*ROWS] @ panels[p], or = for the first blocks of k: ROWS x PANELS <= 4 tiles of sums.
template <int ROWS, int PANELS, class Ahead>
TTS_TARGET_AMX inline void multiply_tiles(const BF16* x, int64_t x_stride, const BF16* const* panels, int64_t depth,
                                          bool is_first, Ahead& ahead, float* sums) {
  const int64_t row_bytes = x_stride * 2, tile_size = kTileRows * x_stride;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kSum, 64);
    _tile_loadd(2, sums + 2 * kSum, 64);
    if (ROWS != 3) _tile_loadd(3, sums + 3 * kSum, 64);
  }
  for (int64_t k = 0, at = 0; k < depth; ++k, at += kBlockSize, x += kPanelDepth) {
    ahead.step();
    if constexpr (PANELS == 4) {
      _tile_loadd(4, x, row_bytes);
      apart();
      _tile_loadd(5, panels[0] + at, 64);
      apart();
      _tile_dpbf16ps(0, 4, 5);
      apart();
      _tile_loadd(6, panels[1] + at, 64);
      apart();
      _tile_dpbf16ps(1, 4, 6);
      apart();
      _tile_loadd(7, panels[2] + at, 64);
      apart();
      _tile_dpbf16ps(2, 4, 7);
      apart();
      _tile_loadd(5, panels[3] + at, 64);
      apart();
      _tile_dpbf16ps(3, 4, 5);
      apart();
    } else if constexpr (PANELS == 2) {
      const BF16 *soon0 = panels[0] + at + kSoon * kBlockSize, *soon1 = panels[1] + at + kSoon * kBlockSize;
      _tile_loadd(4, x, row_bytes);
      ask_for_quarter<0>(soon0);
      _tile_loadd(6, panels[0] + at, 64);
      ask_for_quarter<1>(soon0);
      _tile_dpbf16ps(0, 4, 6);
      ask_for_quarter<2>(soon0);
      _tile_loadd(5, x + tile_size, row_bytes);
      ask_for_quarter<3>(soon0);
      _tile_dpbf16ps(1, 5, 6);
      ask_for_quarter<0>(soon1);
      _tile_loadd(7, panels[1] + at, 64);
      ask_for_quarter<1>(soon1);
      _tile_dpbf16ps(2, 4, 7);
      ask_for_quarter<2>(soon1);
      _tile_dpbf16ps(3, 5, 7);
      ask_for_quarter<3>(soon1);
    } else {
      _tile_loadd(6, panels[0] + at, 64);
      apart();
      _tile_loadd(4, x, row_bytes);
      apart();
      _tile_dpbf16ps(0, 4, 6);
      apart();
      _tile_loadd(5, x + tile_size, row_bytes);
      apart();
      _tile_dpbf16ps(1, 5, 6);
      apart();
      _tile_loadd(7, x + 2 * tile_size, row_bytes);
      apart();
      _tile_dpbf16ps(2, 7, 6);
      apart();
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSum, 64);
  _tile_stored(2, sums + 2 * kSum, 64);
  if (ROWS != 3) _tile_stored(3, sums + 3 * kSum, 64);
}

constexpr int64_t panels_beside(int64_t tile_rows) { return tile_rows > 2 ? 1 : kStrip / tile_rows; }

// The sums of a strip's panels for ROWS tiles of rows, as many panels at a time as the rows leave tiles for.
// `ahead_of(panels, behind)` gives what asks for the next blocks during the product with some panels; behind the last are `next`.
template <int ROWS, class AheadOf>
TTS_TARGET_AMX void rows_of_tiles(const BF16* x, int64_t x_stride, const Panels& panels, const Panels& next, int64_t depth,
                                  bool is_first, AheadOf&& ahead_of, float* sums) {
  constexpr int64_t kPanels = panels_beside(ROWS);
  for (int64_t panel = 0; panel < panels.count; panel += kPanels) {
    const BF16 *some[kPanels], *behind[kPanels];
    const bool is_last = panel + kPanels >= panels.count;
    for (int64_t i = 0; i < kPanels; ++i) {
      some[i] = panels.at[panel + i];
      behind[i] = is_last ? next.at[i] : panels.at[std::min(panel + kPanels + i, kStrip - 1)];
    }
    auto&& ahead = ahead_of(some, behind);
    multiply_tiles<ROWS, kPanels>(x, x_stride, some, depth, is_first, ahead, sums + panel * ROWS * kSum);
  }
}

}  // namespace
}  // namespace tts

#endif
