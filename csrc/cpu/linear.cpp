// linear: out[m,n] = sum_k x[m,k] * weight[n,k] + bias[n].
//
// A task takes up to 128 rows of x and 64 rows of the weight. It transposes a [64, 128] tile of the weight into a stack buffer,
// so that a vector lane is a column of the output, and walks x row by row: it reads 64*K + 128*K and writes 128*64 elements.
// Invariant: lane (m, n) holds the sum over blocks of 128 k of the sums within the block, both in order of k. No other row and
// no tile size enters it, so a row's bits do not depend on M, on the tiling or on the thread count.
#include <algorithm>
#include <type_traits>

#include "common/check.h"
#include "common/simd.h"

namespace tts {
namespace {

constexpr int64_t kChunkRows = 128;         // rows of x per task
constexpr int64_t kTileColumns = 64;        // rows of the weight per task: 4 vectors
constexpr int64_t kBlockDepth = 128;        // k per block: the transposed tile is 32 KB
constexpr int64_t kParallelWork = 1 << 19;  // multiply-adds below which a second thread costs more than it saves

struct Linear {
  int64_t M, N, K, x_stride;
  const void *x, *weight, *bias;
  void* out;
};

// sums[m, 0:64] (+)= x[m, 0:depth] @ tile[0:depth, 0:64], for ROWS rows and VECTORS * 16 columns.
template <int ROWS, int VECTORS>
TTS_INLINE void multiply_tile(const float* x, int64_t x_stride, const float* tile, int64_t depth, bool is_first, float* sums) {
  F32x16 acc[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    F32x16 column[VECTORS];
    for (int v = 0; v < VECTORS; ++v) column[v] = load<kLanes>(tile + k * kTileColumns + v * kLanes);
    for (int m = 0; m < ROWS; ++m)
      for (int v = 0; v < VECTORS; ++v) acc[m][v] += x[m * x_stride + k] * column[v];
  }
  for (int m = 0; m < ROWS; ++m)
    for (int v = 0; v < VECTORS; ++v) {
      float* to = sums + m * kTileColumns + v * kLanes;
      store(to, is_first ? acc[m][v] : load<kLanes>(to) + acc[m][v]);
    }
}

// As many rows at a time as leave the accumulators, one vector of each column and a broadcast in 32 registers.
template <int VECTORS>
TTS_INLINE void multiply_rows(const float* x, int64_t x_stride, int64_t rows, const float* tile, int64_t depth, bool is_first,
                              float* sums) {
  constexpr int kRows = VECTORS == 4 ? 6 : 8;
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows)
    multiply_tile<kRows, VECTORS>(x + m * x_stride, x_stride, tile, depth, is_first, sums + m * kTileColumns);
  for (; m + 3 <= rows; m += 3)
    multiply_tile<3, VECTORS>(x + m * x_stride, x_stride, tile, depth, is_first, sums + m * kTileColumns);
  for (; m < rows; ++m) multiply_tile<1, VECTORS>(x + m * x_stride, x_stride, tile, depth, is_first, sums + m * kTileColumns);
}

TTS_CLONES void multiply_block(const float* x, int64_t x_stride, int64_t rows, const float* tile, int64_t vectors, int64_t depth,
                               bool is_first, float* sums) {
  switch (vectors) {
    case 1: return multiply_rows<1>(x, x_stride, rows, tile, depth, is_first, sums);
    case 2: return multiply_rows<2>(x, x_stride, rows, tile, depth, is_first, sums);
    case 3: return multiply_rows<3>(x, x_stride, rows, tile, depth, is_first, sums);
    default: return multiply_rows<4>(x, x_stride, rows, tile, depth, is_first, sums);
  }
}

// tile[k, n] = weight[n0 + n, k0 + k]; columns beyond N repeat the last one and are never stored.
template <class T>
TTS_INLINE void pack_tile(const Linear& p, int64_t n0, int64_t vectors, int64_t k0, int64_t depth, float* tile) {
  for (int64_t v = 0; v < vectors; ++v) {
    const T* rows[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      rows[i] = static_cast<const T*>(p.weight) + std::min(n0 + v * kLanes + i, p.N - 1) * p.K + k0;
    transpose_rows(rows, kLanes, depth, tile + v * kLanes, kTileColumns);
  }
}

// The rows of x as float32: in place, or widened into `copy`.
TTS_INLINE const float* widen_rows(const float* x, int64_t, int64_t, int64_t, float*) { return x; }
template <class T>
TTS_INLINE const float* widen_rows(const T* x, int64_t x_stride, int64_t rows, int64_t depth, float* copy) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t k = 0; k < depth; k += kLanes) store(copy + m * kBlockDepth + k, load_some(x + m * x_stride + k, depth - k));
  return copy;
}

template <class T>
TTS_INLINE void write_tile(const Linear& p, const float* sums, int64_t m0, int64_t rows, int64_t n0, int64_t columns) {
  for (int64_t n = 0; n < columns; n += kLanes) {
    const int64_t count = std::min<int64_t>(columns - n, kLanes);
    const F32x16 bias = p.bias == nullptr ? F32x16{} : load_some(static_cast<const T*>(p.bias) + n0 + n, count);
    for (int64_t m = 0; m < rows; ++m)
      store_some(static_cast<T*>(p.out) + (m0 + m) * p.N + n0 + n, load<kLanes>(sums + m * kTileColumns + n) + bias, count);
  }
}

template <class T>
TTS_CLONES void linear_task(const Linear& p, int64_t m0, int64_t n0) {
  constexpr bool is_widened = !std::is_same<T, float>::value;
  alignas(64) float tile[kBlockDepth * kTileColumns], sums[kChunkRows * kTileColumns];
  alignas(64) float copy[is_widened ? kChunkRows * kBlockDepth : 1];
  const int64_t rows = std::min(kChunkRows, p.M - m0), columns = std::min(kTileColumns, p.N - n0);
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  for (int64_t k0 = 0; k0 == 0 || k0 < p.K; k0 += kBlockDepth) {
    const int64_t depth = std::min(kBlockDepth, p.K - k0);
    pack_tile<T>(p, n0, vectors, k0, depth, tile);
    const float* x = widen_rows(static_cast<const T*>(p.x) + m0 * p.x_stride + k0, p.x_stride, rows, depth, copy);
    const int64_t x_stride = is_widened ? kBlockDepth : p.x_stride;
    multiply_block(x, x_stride, rows, tile, vectors, depth, k0 == 0, sums);
  }
  write_tile<T>(p, sums, m0, rows, n0, columns);
}

template <class T>
void run_linear(const Linear& p) {
  const int64_t row_chunks = (p.M + kChunkRows - 1) / kChunkRows, column_tiles = (p.N + kTileColumns - 1) / kTileColumns;
  const int64_t tasks = row_chunks * column_tiles;
#pragma omp parallel for schedule(dynamic) if (tasks > 1 && p.M * p.N * p.K > kParallelWork)
  for (int64_t task = 0; task < tasks; ++task)
    linear_task<T>(p, task % row_chunks * kChunkRows, task / row_chunks * kTileColumns);
}

}  // namespace
}  // namespace tts

int tts_linear(int dtype, int64_t M, int64_t N, int64_t K, const void* x, int64_t x_stride, const void* weight, const void* bias,
               void* out) {
  using namespace tts;
  return guarded([&] {
    check_range("linear: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("linear: x", {M, std::max(x_stride, K)});
    check_sizes("linear: weight", {N, K});
    check_sizes("linear: out", {M, N});
    if (M == 0 || N == 0) return;
    const Linear p{M, N, K, x_stride, x, weight, bias, out};
    with_dtype(dtype, [&](auto element) { run_linear<decltype(element)>(p); });
  });
}
