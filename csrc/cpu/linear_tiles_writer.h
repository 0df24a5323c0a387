// How linear on the tile unit writes its sums, plain or through silu_and_mul. Of linear_tiles.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/tiles.h"
#include "cpu/linear.h"
#include "cpu/silu_and_mul.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kStreamBytes = 1 << 20;  // of an output: more does not stay in L2 beside the weights

TTS_TARGET_AMX TTS_INLINE __m512 widened(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Writes the sums of a strip, a cache line of the output at a time where it has whole ones: row after row of two panels. Much of
// it runs beside the next product, which leaves all but the tile unit idle.
class Writer {
 public:
  explicit Writer(const Linear& p) : p_(p), N_(p.columns()) {
    // Written through the caches, each line of a large output would be read from memory before.
    is_streamed_ = p.M * N_ * 2 > kStreamBytes && N_ % 32 == 0 && reinterpret_cast<std::uintptr_t>(p.out) % 64 == 0;
  }

  // `count` panels of the output from `first` on, for some rows; `sums` holds `panel_sums` of each panel of the strip. They are
  // written in `num_steps` steps.
  void begin(const float* sums, int64_t panel_sums, int64_t m0, int64_t rows, int64_t first, int64_t count, int64_t num_steps) {
    sums_ = sums, panel_sums_ = panel_sums, m0_ = m0, rows_ = rows, first_ = first, count_ = count;
    left_ = in_blocks(count, 2) * rows;
    lines_ = in_blocks(left_, num_steps);
    begin_panels(0);
  }
  const float* sums() const { return sums_; }

  TTS_INLINE void step() {
    if (left_ > 0) write(std::min(lines_, left_));
  }
  void finish() { write(left_); }

  // Lets other threads see what went past the caches.
  ~Writer() {
    if (is_streamed_) _mm_sfence();
  }

 private:
  // The rows of two panels, or of the last one alone.
  void begin_panels(int64_t panel) {
    const int64_t n0 = (first_ + panel) * kPanelColumns;
    const int64_t columns = std::min(std::min<int64_t>(2, count_ - panel) * kPanelColumns, N_ - n0);
    panel_ = panel;
    rows_left_ = rows_;
    at_ = sums_ + panel * panel_sums_;
    beside_ = panel + 1 < count_ ? panel_sums_ : 0;
    exists_ = columns == 32 ? ~__mmask32{0} : (__mmask32{1} << columns) - 1;
    to_ = static_cast<BF16*>(p_.out) + m0_ * N_ + n0;
    bias_ = p_.bias == nullptr ? nullptr : static_cast<const BF16*>(p_.bias) + n0;
  }

  TTS_TARGET_AMX __attribute__((noinline)) void write(int64_t num_lines) {
    left_ -= num_lines;
    for (int64_t count; num_lines > 0; num_lines -= count) {
      count = std::min(num_lines, rows_left_);
      write_rows(count);
      if ((rows_left_ -= count) == 0 && panel_ + 2 < count_) begin_panels(panel_ + 2);
    }
  }

  TTS_TARGET_AMX TTS_INLINE void write_rows(int64_t count) {
    const float* up = at_ + count_ * panel_sums_;
    const BF16* up_bias = bias_ == nullptr ? nullptr : bias_ + N_;
    for (int64_t i = 0; i < count; ++i, at_ += kPanelColumns, up += kPanelColumns, to_ += N_) {
      __m512i line = rounded(at_, bias_);
      if (p_.is_gated) {
        alignas(64) BF16 gate[32], by[32];
        _mm512_store_si512(gate, line);
        _mm512_store_si512(by, rounded(up, up_bias));
        silu_and_mul(gate, by, 32, gate);
        line = _mm512_load_si512(gate);
      }
      if (is_streamed_)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to_), line);
      else
        _mm512_mask_storeu_epi16(to_, exists_, line);
    }
  }

  // A row of both panels with their bias, as it is written.
  TTS_TARGET_AMX TTS_INLINE __m512i rounded(const float* sums, const BF16* bias) const {
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + beside_);
    if (bias != nullptr) {
      const __m512i both = _mm512_maskz_loadu_epi16(exists_, bias);
      low = _mm512_add_ps(low, widened(_mm512_castsi512_si256(both)));
      high = _mm512_add_ps(high, widened(_mm512_extracti64x4_epi64(both, 1)));
    }
    const __m512bh line = _mm512_cvtne2ps_pbh(high, low);
    return reinterpret_cast<const __m512i&>(line);
  }

  const Linear& p_;
  const int64_t N_;
  bool is_streamed_;
  const float* sums_ = nullptr;
  int64_t panel_sums_ = 0, m0_ = 0, rows_ = 0, first_ = 0, count_ = 0, left_ = 0, lines_ = 0;
  // Of the panels at hand, the next row first.
  int64_t panel_ = 0, rows_left_ = 0, beside_ = 0;
  __mmask32 exists_ = 0;
  const float* at_ = nullptr;
  const BF16* bias_ = nullptr;
  BF16* to_ = nullptr;
};

}  // namespace
}  // namespace tts

#endif
