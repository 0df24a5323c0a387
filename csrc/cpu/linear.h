// What the implementations of linear share: the problem, checked by the launcher, the packed weight's order, and the three
// that compute it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/simd.h"
#include "common/sizes.h"
#include "common/threads.h"

namespace tts {

constexpr int64_t kPanelColumns = 16;                        // of a panel
constexpr int64_t kPanelDepth = 32;                          // k of a block: [16 pairs][16 columns][2]
constexpr int64_t kBlockSize = kPanelColumns * kPanelDepth;  // elements
constexpr int64_t kStrip = 4;                                // panels that a thread takes at a time, at most
constexpr int64_t kParallelWork = 1 << 17;                   // multiply-adds below which a second thread costs more than it saves

// Elements of a weight through tts_pack.
inline int64_t packed_size(int64_t N, int64_t K) { return in_blocks(N, kPanelColumns) * in_blocks(K, kPanelDepth) * kBlockSize; }

// Where it is gated, out is silu_and_mul of the product: of its first N / 2 columns with the others.
struct Linear {
  int64_t M, N, K, x_stride;
  const void *x, *weight, *bias;
  void* out;
  bool is_gated = false;

  int64_t columns() const { return is_gated ? N / 2 : N; }
  int64_t depth() const { return in_blocks(K, kPanelDepth); }
};

// Rows of whole blocks of E, zeros behind K and behind M.
template <class E>
struct PaddedRows {
  E* rows;
  int64_t stride;  // in elements: an odd number of cache lines, so that the rows of a tile lie in different sets

  static int64_t stride_of(int64_t depth) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(E));
    return (depth * kPanelDepth / kLine | 1) * kLine;
  }
};

// x in rows of E, padded to whole blocks once per call, and then body(x, m0, m1, panel): a thread takes consecutive panels and
// reads them from DRAM once per chunk of rows, which stays in L2.
template <class E, class CopyRow, class Body>
void for_each_panel(const Linear& p, CopyRow&& copy_row, Body&& body) {
  constexpr int64_t kChunkBytes = 1 << 20, kMinChunkRows = 64, kMaxChunkRows = 256;  // 1 MB is half of a usual L2
  const int64_t stride = PaddedRows<E>::stride_of(p.depth()), row_bytes = stride * static_cast<int64_t>(sizeof(E));
  const int64_t rows = round_up(p.M, 16), panels = in_blocks(p.N, kPanelColumns);
  const int64_t chunk = std::clamp(kChunkBytes / row_bytes / 64 * 64, kMinChunkRows, kMaxChunkRows);
  const PaddedRows<E> x{static_cast<E*>(thread_owned<Scratch>().take(rows * row_bytes)), stride};
#pragma omp parallel if (p.M * p.N * p.K > kParallelWork)
  {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < rows; ++m) {
      E* to = x.rows + m * stride;
      const int64_t count = m < p.M ? p.K : 0;
      if (count > 0) copy_row(m, to);
      std::memset(static_cast<void*>(to + count), 0, static_cast<size_t>(stride - count) * sizeof(E));
    }
    const int64_t strips = in_blocks(panels, kStrip), thread = thread_index(), threads = team_size();
    const int64_t begin = strips * thread / threads * kStrip, end = std::min(panels, strips * (thread + 1) / threads * kStrip);
    for (int64_t m = 0; m < p.M; m += chunk)
      for (int64_t panel = begin; panel < end; ++panel) body(x, m, std::min(p.M, m + chunk), panel);
  }
}

// Any dtype, in float32 arithmetic.
void linear_in_float32(const Linear& p, int dtype);

// bfloat16 in dot products of pairs; only where has_bf16_dot().
void linear_in_dots(const Linear& p);

// bfloat16 on the tile unit; only where has_bf16_tiles(). The only one that takes a gated product, of panels' whole columns.
void linear_in_tiles(const Linear& p);

}  // namespace tts
