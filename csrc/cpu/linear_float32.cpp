// linear in float32 arithmetic: a chunk of rows meets one panel of 16 columns at a time.
//
// A panel is read from DRAM once per chunk of rows. Invariant: an element of the output is summed over k in runs of 128 with even
// and odd k apart, then run by run; no other row or column enters it.
#include <cstring>
#include <type_traits>

#include "common/check.h"
#include "cpu/linear.h"

namespace tts {
namespace {

TTS_INLINE void copy_row(const float* from, int64_t count, float* to) { std::memcpy(to, from, static_cast<size_t>(count) * 4); }
template <class T>
TTS_CLONES void copy_row(const T* from, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += kLanes) store_some(to + k, load_some(from + k, count - k), count - k);
}

constexpr int64_t kSumRows = 96;                 // rows whose sums stay in L1
constexpr int64_t kRowSums = 2 * kPanelColumns;  // of a row: 16 columns x (even k, odd k)
constexpr int64_t kRunBlocks = 4;                // blocks of k summed before they join the total

// sums[m, first * W on] += x[m, 0:2*pairs] @ run, for VECTORS vectors of W / 2 columns x (even k, odd k).
template <int W, int ROWS, int VECTORS>
TTS_INLINE void multiply_pairs(const float* x, int64_t x_stride, const float* run, int64_t pairs, int64_t first, float* sums) {
  using Float = typename Vector<W>::Float;
  Float acc[ROWS][VECTORS] = {};
  for (int64_t pair = 0; pair < pairs; ++pair) {
    Float column[VECTORS];
    for (int v = 0; v < VECTORS; ++v) column[v] = load<W>(run + pair * kRowSums + (first + v) * W);
    for (int m = 0; m < ROWS; ++m) {
      const Float both = load_pair<W>(x + m * x_stride + 2 * pair);
      for (int v = 0; v < VECTORS; ++v) acc[m][v] += both * column[v];
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int v = 0; v < VECTORS; ++v) {
      float* to = sums + m * kRowSums + (first + v) * W;
      store(to, load<W>(to) + acc[m][v]);
    }
}

// As many rows at a time as leave the sums, one vector of each column and a broadcast in registers: 32, or 16 below W = 16.
template <int W>
TTS_INLINE void multiply_run_for(const float* x, int64_t x_stride, int64_t rows, const float* run, int64_t pairs, float* sums) {
  constexpr int kMost = W == 16 ? 12 : 6;
  for (int64_t first = 0; first < kRowSums / W; first += 2) {
    int64_t m = 0;
    for (; m + kMost <= rows; m += kMost)
      multiply_pairs<W, kMost, 2>(x + m * x_stride, x_stride, run, pairs, first, sums + m * kRowSums);
    for (; m + 4 <= rows; m += 4) multiply_pairs<W, 4, 2>(x + m * x_stride, x_stride, run, pairs, first, sums + m * kRowSums);
    for (; m < rows; ++m) multiply_pairs<W, 1, 2>(x + m * x_stride, x_stride, run, pairs, first, sums + m * kRowSums);
  }
}

TTS_PER_WIDTH(multiply_run, (const float* x, int64_t x_stride, int64_t rows, const float* run, int64_t pairs, float* sums),
              (x, x_stride, rows, run, pairs, sums))

// `count` elements of the weight as float32: in place, or widened into `copy`.
TTS_INLINE const float* widen(const float* from, int64_t, float*) { return from; }
template <class T>
TTS_CLONES const float* widen(const T* from, int64_t count, float* copy) {
  for (int64_t i = 0; i < count; i += kLanes) store(copy + i, load<kLanes>(from + i));
  return copy;
}

// out[m, n0:n0+16] = even + odd sums + bias, for the columns that exist.
template <class T>
TTS_CLONES void write_pairs(const Linear& p, const float* sums, int64_t m0, int64_t rows, int64_t n0) {
  const int64_t count = std::min(p.N - n0, kPanelColumns);
  const F32x16 bias = p.bias == nullptr ? F32x16{} : load_some(static_cast<const T*>(p.bias) + n0, count);
  for (int64_t m = 0; m < rows; ++m) {
    const F32x16 sum = sum_pairs(load<kLanes>(sums + m * kRowSums), load<kLanes>(sums + m * kRowSums + kLanes));
    store_some(static_cast<T*>(p.out) + (m0 + m) * p.N + n0, sum + bias, count);
  }
}

template <class T>
void panel_of_float32(const Linear& p, const PaddedRows<float>& x, int64_t m0, int64_t m1, int64_t panel) {
  alignas(64) float sums[kSumRows * kRowSums], copy[std::is_same<T, float>::value ? 1 : kRunBlocks * kBlockSize];
  const T* weight = static_cast<const T*>(p.weight) + panel * p.depth() * kBlockSize;
  for (int64_t m = m0, rows; m < m1; m += rows) {
    rows = std::min(kSumRows, m1 - m);
    std::memset(sums, 0, static_cast<size_t>(rows * kRowSums) * sizeof(float));
    for (int64_t k = 0, blocks; k < p.depth(); k += blocks) {
      blocks = std::min(kRunBlocks, p.depth() - k);
      const float* run = widen(weight + k * kBlockSize, blocks * kBlockSize, copy);
      const int64_t pairs = (std::min(blocks * kPanelDepth, p.K - k * kPanelDepth) + 1) / 2;
      multiply_run(x.rows + m * x.stride + k * kPanelDepth, x.stride, rows, run, pairs, sums);
    }
    write_pairs<T>(p, sums, m, rows, panel * kPanelColumns);
  }
}

template <class T>
void run(const Linear& p) {
  const auto* x = static_cast<const T*>(p.x);
  for_each_panel<float>(
      p, [&](int64_t m, float* to) { copy_row(x + m * p.x_stride, p.K, to); },
      [&](auto&&... at) { panel_of_float32<T>(p, at...); });
}

}  // namespace

void linear_in_float32(const Linear& p, int dtype) {
  with_dtype(dtype, [&](auto element) { run<decltype(element)>(p); });
}

}  // namespace tts
