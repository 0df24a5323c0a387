// linear: out[m,n] = sum_k x[m,k] * W[n,k] + bias[n], W packed in panels of 16 rows; and the packing.
//
// A thread takes consecutive strips of four panels of 16 columns and reads them from DRAM once per chunk of rows; the next panels
// are on their way to L2 while some are worked on. x is padded to whole blocks once per call and stays in L2. Invariant: an
// element of the output is summed over k in a fixed order: tiles in blocks of 32 k, dot products of pairs of k, float32 in runs
// of 128 k with even and odd k apart. No other row or column and no chunk enters it, so a row's bits do not depend on M or on the
// thread count.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/check.h"
#include "common/isa.h"
#include "common/simd.h"
#include "common/sizes.h"
#include "common/threads.h"
#include "common/tiles.h"

namespace tts {
namespace {

constexpr int64_t kColumns = 16;                   // of a panel
constexpr int64_t kDepth = 32;                     // k of a block: [16 pairs][16 columns][2]
constexpr int64_t kBlockSize = kColumns * kDepth;  // elements
constexpr int64_t kStrip = 4;                      // panels that a thread takes at a time
constexpr int64_t kChunkBytes = 1 << 20;           // of x per chunk of rows: half of a usual L2
constexpr int64_t kMinChunkRows = 64, kMaxChunkRows = 256;
constexpr int64_t kParallelWork = 1 << 17;  // multiply-adds below which a second thread costs more than it saves

struct Linear {
  int64_t M, N, K, x_stride;
  const void *x, *weight, *bias;
  void* out;

  int64_t depth() const { return in_blocks(K, kDepth); }
};

// ---- x, padded: rows of whole blocks of E (float32, or bfloat16 where the machine multiplies it), zeros behind K and behind M

template <class E>
struct Padded {
  E* rows;
  int64_t stride;  // in elements: an odd number of cache lines, so that the rows of a tile lie in different sets

  static int64_t stride_of(int64_t depth) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(E));
    return (depth * kDepth / kLine | 1) * kLine;
  }
};

TTS_INLINE void copy_row(const float* from, int64_t count, float* to) { std::memcpy(to, from, static_cast<size_t>(count) * 4); }
TTS_INLINE void copy_row(const BF16* from, int64_t count, BF16* to) { std::memcpy(to, from, static_cast<size_t>(count) * 2); }
template <class T>
TTS_INLINE void copy_row(const T* from, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += kLanes) store_some(to + k, load_some(from + k, count - k), count - k);
}

template <class T, class E>
TTS_CLONES void pad_row(const Linear& p, int64_t m, const Padded<E>& x) {
  E* to = x.rows + m * x.stride;
  const int64_t count = m < p.M ? p.K : 0;
  if (count > 0) copy_row(static_cast<const T*>(p.x) + m * p.x_stride, count, to);
  std::memset(static_cast<void*>(to + count), 0, static_cast<size_t>(x.stride - count) * sizeof(E));
}

// ---- float32: rows x one panel

constexpr int64_t kSumRows = 96;            // rows whose sums stay in L1
constexpr int64_t kRowSums = 2 * kColumns;  // of a row: 16 columns x (even k, odd k)
constexpr int64_t kRunBlocks = 4;           // blocks of k summed before they join the total

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
  const int64_t count = std::min(p.N - n0, kColumns);
  const F32x16 bias = p.bias == nullptr ? F32x16{} : load_some(static_cast<const T*>(p.bias) + n0, count);
  for (int64_t m = 0; m < rows; ++m) {
    const F32x16 sum = sum_pairs(load<kLanes>(sums + m * kRowSums), load<kLanes>(sums + m * kRowSums + kLanes));
    store_some(static_cast<T*>(p.out) + (m0 + m) * p.N + n0, sum + bias, count);
  }
}

template <class T>
void panel_of_float32(const Linear& p, const Padded<float>& x, int64_t m0, int64_t m1, int64_t panel) {
  alignas(64) float sums[kSumRows * kRowSums], copy[std::is_same<T, float>::value ? 1 : kRunBlocks * kBlockSize];
  const T* weight = static_cast<const T*>(p.weight) + panel * p.depth() * kBlockSize;
  for (int64_t m = m0, rows; m < m1; m += rows) {
    rows = std::min(kSumRows, m1 - m);
    std::memset(sums, 0, static_cast<size_t>(rows * kRowSums) * sizeof(float));
    for (int64_t k = 0, blocks; k < p.depth(); k += blocks) {
      blocks = std::min(kRunBlocks, p.depth() - k);
      const float* run = widen(weight + k * kBlockSize, blocks * kBlockSize, copy);
      const int64_t pairs = (std::min(blocks * kDepth, p.K - k * kDepth) + 1) / 2;
      multiply_run(x.rows + m * x.stride + k * kDepth, x.stride, rows, run, pairs, sums);
    }
    write_pairs<T>(p, sums, m, rows, panel * kColumns);
  }
}

template <class T>
void strip_of_float32(const Linear& p, const Padded<float>& x, int64_t m0, int64_t m1, int64_t panel, int64_t num_panels) {
  for (; num_panels > 0; --num_panels, ++panel) panel_of_float32<T>(p, x, m0, m1, panel);
}

// ---- bfloat16: dot products of pairs, or tiles

#if TTS_HAS_X86_BF16

constexpr int64_t kStageBlocks = 32;        // of a panel: what is asked for at a time
constexpr int64_t kAhead = 8 * kBlockSize;  // elements between what is loaded and what is asked for: 8 KB

TTS_INLINE void prefetch_block(const BF16* block) {
  for (int64_t i = 0; i < kBlockSize; i += 32) __builtin_prefetch(block + i);
}

// out[m, n0:n0+16] = sums[m] + bias, for the rows and columns that exist.
TTS_TARGET_AVX512_BF16 void write_sums(const Linear& p, const float* sums, int64_t m0, int64_t rows, int64_t n0) {
  const __mmask16 exists = static_cast<__mmask16>((1u << std::min(kColumns, p.N - n0)) - 1);
  const void* from = static_cast<const BF16*>(p.bias) + n0;
  const __m256i half = p.bias == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(exists, from);
  const __m512 bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  for (int64_t m = 0; m < rows; ++m) {
    const __m256bh sum = _mm512_cvtneps_pbh(_mm512_add_ps(_mm512_load_ps(sums + m * kColumns), bias));
    void* to = static_cast<BF16*>(p.out) + (m0 + m) * p.N + n0;
    _mm256_mask_storeu_epi16(to, exists, reinterpret_cast<const __m256i&>(sum));
  }
}

// sums[0:ROWS] = x[0:ROWS] @ panel.
template <int ROWS>
TTS_TARGET_AVX512_BF16 inline void dot_rows(const BF16* x, int64_t x_stride, const BF16* panel, int64_t depth, float* sums) {
  __m512 acc[ROWS];
  for (int m = 0; m < ROWS; ++m) acc[m] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k, panel += kBlockSize, x += kDepth) {
    prefetch_block(panel + kAhead);
    for (int pair = 0; pair < 16; ++pair) {
      const __m512i columns = _mm512_loadu_si512(panel + pair * 2 * kColumns);
      for (int m = 0; m < ROWS; ++m) {
        int32_t both;
        std::memcpy(&both, x + m * x_stride + 2 * pair, sizeof(both));
        acc[m] = _mm512_dpbf16_ps(acc[m], reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                                  reinterpret_cast<const __m512bh&>(columns));
      }
    }
  }
  for (int m = 0; m < ROWS; ++m) _mm512_store_ps(sums + m * kColumns, acc[m]);
}

TTS_TARGET_AVX512_BF16 void panel_of_dots(const Linear& p, const Padded<BF16>& x, int64_t m0, int64_t m1, int64_t panel) {
  constexpr int kMost = 24;
  alignas(64) float sums[kMost * kColumns];
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
    write_sums(p, sums, m, rows, panel * kColumns);
  }
}

void strip_of_dots(const Linear& p, const Padded<BF16>& x, int64_t m0, int64_t m1, int64_t panel, int64_t num_panels) {
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
  constexpr int64_t kSum = kTileRows * kColumns;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int64_t stage = in_blocks(depth, std::max<int64_t>(1, in_blocks(depth, kStageBlocks)));
  const BF16* following = panels[0];
  for (int64_t k = 0, at = 0, within = stage; k < depth; ++k, ++within, at += kBlockSize, x += kDepth) {
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
TTS_TARGET_AMX void strip_of_tiles(const Linear& p, const Padded<BF16>& x, int64_t m, int64_t rows, int64_t first_panel,
                                   int64_t num_panels) {
  constexpr int64_t kPanels = ROWS > 2 ? 1 : kStrip / ROWS;
  alignas(64) float sums[4 * kTileRows * kColumns];
  const int64_t size = p.depth() * kBlockSize;
  const BF16* strip = static_cast<const BF16*>(p.weight) + first_panel * size;
  for (int64_t panel = 0; panel < num_panels; panel += kPanels) {
    const BF16* panels[kPanels];
    for (int64_t i = 0; i < kPanels; ++i) panels[i] = strip + std::min(panel + i, num_panels - 1) * size;
    const BF16* next = strip + (panel + kPanels) * size;
    multiply_tiles<ROWS, kPanels>(x.rows + m * x.stride, x.stride, panels, p.depth(), next, sums);
    for (int64_t i = 0; i < std::min(kPanels, num_panels - panel); ++i)
      write_sums(p, sums + i * ROWS * kTileRows * kColumns, m, rows, (first_panel + panel + i) * kColumns);
  }
}

TTS_TARGET_AMX void strip_of_tiles(const Linear& p, const Padded<BF16>& x, int64_t m0, int64_t m1, int64_t panel,
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
#endif

// ---- the whole

// Threads walk consecutive strips of panels for every chunk of rows: body(x, m0, m1, panel, num_panels).
template <class T, class E, class Session, class Body>
void for_each_strip(const Linear& p, Body&& body) {
  const int64_t stride = Padded<E>::stride_of(p.depth()), row_bytes = stride * static_cast<int64_t>(sizeof(E));
  const int64_t rows = in_blocks(p.M, 16) * 16, panels = in_blocks(p.N, kColumns);
  const int64_t chunk = std::clamp(kChunkBytes / row_bytes / 64 * 64, kMinChunkRows, kMaxChunkRows);
  const Padded<E> x{static_cast<E*>(thread_owned<Scratch>().take(rows * row_bytes)), stride};
#pragma omp parallel if (p.M * p.N * p.K > kParallelWork)
  {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < rows; ++m) pad_row<T, E>(p, m, x);
    [[maybe_unused]] const Session session;
    for (int64_t m = 0; m < p.M; m += chunk)
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < panels; panel += kStrip)
        body(x, m, std::min(p.M, m + chunk), panel, std::min(kStrip, panels - panel));
  }
}

struct NoSession {};

template <class T>
void run_linear(const Linear& p) {
#if TTS_HAS_X86_BF16
  if constexpr (std::is_same<T, BF16>::value) {
    if (has_bf16_tiles()) return for_each_strip<T, BF16, TileSession>(p, [&](auto&&... at) { strip_of_tiles(p, at...); });
    if (has_bf16_dot()) return for_each_strip<T, BF16, NoSession>(p, [&](auto&&... at) { strip_of_dots(p, at...); });
  }
#endif
  for_each_strip<T, float, NoSession>(p, [&](auto&&... at) { strip_of_float32<T>(p, at...); });
}

// ---- packing

struct Pack {
  int64_t N, K, weight_stride;
  const void* weight;
  void* packed;
};

template <class T>
void pack_block(const Pack& p, int64_t n0, int64_t k0, T* to) {
  const int64_t rows = std::min(kColumns, p.N - n0), depth = std::min(kDepth, p.K - k0);
  std::memset(static_cast<void*>(to), 0, kBlockSize * sizeof(T));
  for (int64_t n = 0; n < rows; ++n) {
    const T* from = static_cast<const T*>(p.weight) + (n0 + n) * p.weight_stride + k0;
    for (int64_t k = 0; k < depth; ++k) to[k / 2 * 2 * kColumns + n * 2 + k % 2] = from[k];
  }
}

}  // namespace
}  // namespace tts

int tts_pack(int dtype, int64_t N, int64_t K, const void* weight, int64_t weight_stride, void* packed) {
  using namespace tts;
  return guarded([&] {
    check_range("pack: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("pack: weight", {N, std::max(weight_stride, K)});
    check_sizes("pack: packed", {in_blocks(N, kColumns), in_blocks(K, kDepth), kBlockSize});
    const Pack p{N, K, weight_stride, weight, packed};
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      const int64_t depth = in_blocks(K, kDepth), blocks = in_blocks(N, kColumns) * depth;
#pragma omp parallel for if (N * K > kParallelWork)
      for (int64_t i = 0; i < blocks; ++i)
        pack_block(p, i / depth * kColumns, i % depth * kDepth, static_cast<T*>(packed) + i * kBlockSize);
    });
  });
}

int tts_linear(int dtype, int64_t M, int64_t N, int64_t K, const void* x, int64_t x_stride, const void* packed, const void* bias,
               void* out) {
  using namespace tts;
  return guarded([&] {
    check_range("linear: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("linear: x", {M, std::max(x_stride, K)});
    check_sizes("linear: weight", {in_blocks(N, kColumns), in_blocks(K, kDepth), kBlockSize});
    check_sizes("linear: out", {M, N});
    if (M == 0 || N == 0) return;
    const Linear p{M, N, K, x_stride, x, packed, bias, out};
    with_dtype(dtype, [&](auto element) { run_linear<decltype(element)>(p); });
  });
}
