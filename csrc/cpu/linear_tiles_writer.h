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

TTS_TARGET_AMX inline __m512 widened(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// The sums of two panels side by side, with their bias and rounded: 32 columns from n0 on.
TTS_TARGET_AMX inline void round_line(const Linear& p, const float* left, const float* right, int64_t n0, __mmask32 exists,
                                      BF16* to) {
  __m512 low = _mm512_load_ps(left), high = _mm512_load_ps(right);
  if (p.bias != nullptr) {
    const __m512i bias = _mm512_maskz_loadu_epi16(exists, static_cast<const BF16*>(p.bias) + n0);
    low = _mm512_add_ps(low, widened(_mm512_castsi512_si256(bias)));
    high = _mm512_add_ps(high, widened(_mm512_extracti64x4_epi64(bias, 1)));
  }
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  _mm512_store_si512(to, reinterpret_cast<const __m512i&>(both));
}

// Writes the sums of a strip, a cache line of the output at a time where it has whole ones. Much of it runs beside the next
// product, which leaves all but the tile unit idle.
class Writer {
 public:
  explicit Writer(const Linear& p) : p_(p) {
    // Written through the caches, each line of a large output would be read from memory before.
    is_streamed_ =
        p.M * p.columns() * 2 > kStreamBytes && p.columns() % 32 == 0 && reinterpret_cast<std::uintptr_t>(p.out) % 64 == 0;
  }

  // `count` panels of the output from `first` on, for some rows; `sums` holds `panel_sums` of each panel of the strip. They are
  // written in `num_steps` steps.
  void begin(const float* sums, int64_t panel_sums, int64_t m0, int64_t rows, int64_t first, int64_t count, int64_t num_steps) {
    sums_ = sums, panel_sums_ = panel_sums, m0_ = m0, rows_ = rows, first_ = first, count_ = count;
    panel_ = row_ = 0;
    left_ = in_blocks(count, 2) * rows;
    lines_ = in_blocks(left_, num_steps);
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
  TTS_TARGET_AMX __attribute__((noinline)) void write(int64_t num_lines) {
    left_ -= num_lines;
    for (; num_lines > 0; --num_lines) {
      write_line();
      if (++row_ == rows_) row_ = 0, panel_ += 2;
    }
  }

  TTS_TARGET_AMX TTS_INLINE void write_line() {
    const int64_t n0 = (first_ + panel_) * kPanelColumns, N = p_.columns();
    const int64_t columns = std::min(std::min<int64_t>(2, count_ - panel_) * kPanelColumns, N - n0);
    const __mmask32 exists = columns == 32 ? ~__mmask32{0} : (__mmask32{1} << columns) - 1;
    const int64_t beside = panel_ + 1 < count_ ? panel_sums_ : 0;
    const float* sums = sums_ + panel_ * panel_sums_ + row_ * kPanelColumns;
    alignas(64) BF16 line[32], gated[32];
    round_line(p_, sums, sums + beside, n0, exists, line);
    if (p_.is_gated) {
      sums += count_ * panel_sums_;
      round_line(p_, sums, sums + beside, n0 + N, exists, gated);
      silu_and_mul(line, gated, 32, line);
    }
    void* to = static_cast<BF16*>(p_.out) + (m0_ + row_) * N + n0;
    if (is_streamed_)
      _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_load_si512(line));
    else
      _mm512_mask_storeu_epi16(to, exists, _mm512_load_si512(line));
  }

  const Linear& p_;
  bool is_streamed_;
  const float* sums_ = nullptr;
  int64_t panel_sums_ = 0, m0_ = 0, rows_ = 0, first_ = 0, count_ = 0, panel_ = 0, row_ = 0, left_ = 0, lines_ = 0;
};

}  // namespace
}  // namespace tts

#endif
