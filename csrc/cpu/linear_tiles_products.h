// The products of linear on the tile unit, and how they ask for what is multiplied next. Of linear_tiles.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/tiles.h"
#include "cpu/linear.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kSum = kTileRows * kPanelColumns;

// Panels of the weight from some block of k on; behind `count` the last one again.
struct Panels {
  const BF16* at[kStrip];
  int64_t count;
};

// Asks for the next strip bit by bit while this one is multiplied: reading and multiplying take turns otherwise. Of each page it
// asks for the first lines, from which the machine's prefetcher goes on: what is asked for occupies a buffer until it comes from
// DRAM, and the loads of the product at hand need those buffers.
class NextStrip {
 public:
  NextStrip(const Panels& next, int64_t num_blocks, int64_t num_steps) : next_(next), panel_bytes_(num_blocks * kBlockSize * 2) {
    if (next.count > 0) begin_panel();
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
    at_ += -reinterpret_cast<std::uintptr_t>(at_) % kPage;
    left_ = kFirstLines;
    if (at_ >= end_ && ++panel_ < next_.count) begin_panel();
  }

  const Panels& next_;
  const int64_t panel_bytes_;
  int64_t panel_ = 0, left_ = 0, count_;
  const char *at_ = nullptr, *end_ = nullptr;
};

// Keeps two instructions that write tiles apart, and asks for a quarter of the next block, to be in L1 when it is loaded.
template <int QUARTER>
TTS_INLINE void apart_asking_for(const BF16* block) {
  for (int i = 0; i < 4; ++i) __builtin_prefetch(block + (4 * QUARTER + i) * 32, 0, 3);
  apart<4>();
}

// Panels that one or two tiles of rows meet at a time: together four tiles of sums.
constexpr int64_t panels_beside(int tile_rows) { return kStrip / tile_rows; }

// sums[p][0:16*ROWS] += x[0:16*ROWS] @ panels[p], or = for the first blocks of k. Beside each block goes a step of `beside`.
template <int ROWS, class Beside>
TTS_TARGET_AMX inline void multiply_tiles(const BF16* x, int64_t x_stride, const BF16* const* panels, int64_t depth,
                                          bool is_first, Beside& beside, float* sums) {
  constexpr int64_t kPanels = panels_beside(ROWS);
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
    _tile_loadd(3, sums + 3 * kSum, 64);
  }
  for (int64_t k = 0, at = 0; k < depth; ++k, at += kBlockSize, x += kPanelDepth) {
    beside.step();
    const BF16* soon[kPanels];
    for (int64_t i = 0; i < kPanels; ++i) soon[i] = panels[i] + at + kBlockSize;
    if constexpr (ROWS == 1) {
      _tile_loadd(4, x, row_bytes);
      apart();
      _tile_loadd(5, panels[0] + at, 64);
      apart_asking_for<0>(soon[0]);
      apart_asking_for<1>(soon[0]);
      _tile_dpbf16ps(0, 4, 5);
      apart_asking_for<2>(soon[0]);
      apart_asking_for<3>(soon[0]);
      _tile_loadd(6, panels[1] + at, 64);
      apart_asking_for<0>(soon[1]);
      apart_asking_for<1>(soon[1]);
      _tile_dpbf16ps(1, 4, 6);
      apart_asking_for<2>(soon[1]);
      apart_asking_for<3>(soon[1]);
      _tile_loadd(7, panels[2] + at, 64);
      apart_asking_for<0>(soon[2]);
      apart_asking_for<1>(soon[2]);
      _tile_dpbf16ps(2, 4, 7);
      apart_asking_for<2>(soon[2]);
      apart_asking_for<3>(soon[2]);
      _tile_loadd(5, panels[3] + at, 64);
      apart_asking_for<0>(soon[3]);
      apart_asking_for<1>(soon[3]);
      _tile_dpbf16ps(3, 4, 5);
      apart_asking_for<2>(soon[3]);
      apart_asking_for<3>(soon[3]);
    } else {
      _tile_loadd(4, x, row_bytes);
      apart_asking_for<0>(soon[0]);
      _tile_loadd(6, panels[0] + at, 64);
      apart_asking_for<1>(soon[0]);
      _tile_dpbf16ps(0, 4, 6);
      apart_asking_for<2>(soon[0]);
      _tile_loadd(5, x + tile_size, row_bytes);
      apart_asking_for<3>(soon[0]);
      _tile_dpbf16ps(1, 5, 6);
      apart_asking_for<0>(soon[1]);
      _tile_loadd(7, panels[1] + at, 64);
      apart_asking_for<1>(soon[1]);
      _tile_dpbf16ps(2, 4, 7);
      apart_asking_for<2>(soon[1]);
      _tile_dpbf16ps(3, 5, 7);
      apart_asking_for<3>(soon[1]);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSum, 64);
  _tile_stored(2, sums + 2 * kSum, 64);
  _tile_stored(3, sums + 3 * kSum, 64);
}

// The sums of a strip's panels for ROWS tiles of rows, as many panels at a time as the rows leave tiles for.
template <int ROWS, class Beside>
TTS_TARGET_AMX void rows_of_tiles(const BF16* x, int64_t x_stride, const Panels& panels, int64_t depth, bool is_first,
                                  Beside& beside, float* sums) {
  constexpr int64_t kPanels = panels_beside(ROWS);
  for (int64_t panel = 0; panel < panels.count; panel += kPanels)
    multiply_tiles<ROWS>(x, x_stride, panels.at + panel, depth, is_first, beside, sums + panel * ROWS * kSum);
}

}  // namespace
}  // namespace tts

#endif
