// linear in bfloat16 on the AMX tile unit, and silu_and_mul of its result where the two halves of it are panels.
//
// A thread takes consecutive panels of 16 columns of the output. Many rows meet a weight in two by two tiles; where they do not
// fit L2, k is cut into chunks whose x fits, and the sums wait in float32 in between. What is read next is on its way to L2
// meanwhile.
// Invariant: an element is summed over k in ascending blocks of 32; no other row or column and no chunk enters its bits.
#include <cstring>
#include <utility>

#include "common/tiles.h"
#include "cpu/linear.h"
#include "cpu/silu_and_mul.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kRowChunk = 256;         // rows for which a weight is read once
constexpr int64_t kThreadRows = 64;        // from which a thread takes rows of its own and all of the weight
constexpr int64_t kRowsAtOnce = 3;         // tiles of rows that are multiplied in one go: DRAM is what these wait for
constexpr int64_t kChunkBytes = 1 << 20;   // of x: half of a usual L2
constexpr int64_t kWaitingPanels = 32;     // of the output, whose sums wait for the next chunk: 512 KB at 256 rows
constexpr int64_t kStageBlocks = 32;       // of a panel: what is asked for at a time
constexpr int64_t kPlaces = 8;             // read from DRAM at once: one alone leaves the prefetcher idle at every 4 KB
constexpr int64_t kStreamBytes = 1 << 20;  // of an output: more does not stay in L2 beside the weights
constexpr int64_t kMaxLineStep = 8;        // power of two in a row's cache lines, of 64 sets: 8 of them for 16 rows of a tile
constexpr int64_t kSum = kTileRows * kPanelColumns;

// Panels of the weight from some block of k on; behind `count` the last one again.
struct Panels {
  const BF16* at[kStrip];
  int64_t count;
};

struct Share {
  int64_t m0, m1, panel0, panel1;
};

// How a call is cut: many rows are shared out between the threads, fewer meet each a thread's panels.
struct Cut {
  int64_t tile_rows, threads;
  bool is_by_rows;
  int64_t chunk, num_chunks, width;  // blocks of k in a chunk, output panels in a strip

  Cut(const Linear& p, int64_t threads) : tile_rows(in_blocks(p.M, kTileRows)), threads(threads) {
    is_by_rows = threads > 1 && p.M >= kThreadRows * threads;
    const int64_t rows =
        std::min(is_by_rows ? in_blocks(tile_rows, 2 * threads) * 2 * kTileRows : tile_rows * kTileRows, kRowChunk);
    num_chunks = is_many() ? in_blocks(rows * p.depth() * kPanelDepth * 2, kChunkBytes) : 1;
    chunk = std::max<int64_t>(1, in_blocks(p.depth(), num_chunks));
    num_chunks = std::max<int64_t>(1, in_blocks(p.depth(), chunk));
    // Where rows are many, this strip and the next, both in L2, are to leave room there for x.
    width = p.is_gated || (is_many() && p.depth() > 64) ? kStrip / 2 : kStrip;
  }

  bool is_many() const { return tile_rows > kRowsAtOnce; }

  // Rows and output panels of a thread.
  Share share(const Linear& p, int64_t thread) const {
    const int64_t panels = in_blocks(p.columns(), kPanelColumns);
    const auto cut = [&](int64_t count, int64_t step, int64_t i) {
      return std::min(count, in_blocks(count, step) * i / threads * step);
    };
    if (is_by_rows) return {cut(p.M, 2 * kTileRows, thread), cut(p.M, 2 * kTileRows, thread + 1), 0, panels};
    return {0, p.M, cut(panels, width, thread), cut(panels, width, thread + 1)};
  }
};

// x as tiles are loaded from it: in place where its rows are whole blocks of k and those of a tile lie in different sets of L1,
// else copied chunk by chunk of k, with zeros behind K and M.
struct Rows {
  const BF16* at;
  int64_t stride, chunk_step;  // elements from a row to the next, from a chunk to the next

  static bool is_in_place(const Linear& p) {
    const int64_t lines = p.x_stride / 32;
    return p.M % kTileRows == 0 && p.K % kPanelDepth == 0 && p.x_stride % 32 == 0 && (lines & -lines) <= kMaxLineStep;
  }
  static int64_t copied_bytes(const Linear& p, const Cut& cut) {
    return is_in_place(p) ? 0 : cut.num_chunks * cut.tile_rows * kTileRows * PaddedRows<BF16>::stride_of(cut.chunk) * 2;
  }

  Rows(const Linear& p, const Cut& cut, const void* copy) {
    const bool in_place = is_in_place(p);
    at = static_cast<const BF16*>(in_place ? p.x : copy);
    stride = in_place ? p.x_stride : PaddedRows<BF16>::stride_of(cut.chunk);
    chunk_step = in_place ? cut.chunk * kPanelDepth : cut.tile_rows * kTileRows * stride;
  }

  const BF16* row(int64_t chunk, int64_t m) const { return at + chunk * chunk_step + m * stride; }
};

void copy_row(const Linear& p, const Cut& cut, const Rows& x, int64_t m) {
  const BF16* from = static_cast<const BF16*>(p.x) + m * p.x_stride;
  const int64_t K = m < p.M ? p.K : 0, most = cut.chunk * kPanelDepth;
  for (int64_t c = 0; c < cut.num_chunks; ++c) {
    BF16* to = const_cast<BF16*>(x.row(c, m));
    const int64_t count = std::clamp<int64_t>(K - c * most, 0, most);
    if (count > 0) std::memcpy(static_cast<void*>(to), from + c * most, static_cast<size_t>(count) * 2);
    std::memset(static_cast<void*>(to + count), 0, static_cast<size_t>(x.stride - count) * 2);
  }
}

// The weight's panels for `count` panels of the output from `first` on: where it is gated, the gates and then what they gate.
Panels panels_of(const Linear& p, int64_t first, int64_t count, int64_t block) {
  Panels panels{};
  const auto add = [&](int64_t panel) {
    panels.at[panels.count++] = static_cast<const BF16*>(p.weight) + (panel * p.depth() + block) * kBlockSize;
  };
  for (int64_t i = 0; i < count; ++i) add(first + i);
  for (int64_t i = 0; i < count && p.is_gated; ++i) add(first + i + p.columns() / kPanelColumns);
  for (int64_t i = panels.count; i < kStrip; ++i) panels.at[i] = panels.at[panels.count - 1];
  return panels;
}

// ---- writing

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

// ---- multiplying

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
// Every other line is enough, the other half of its 128 bytes comes along.
class NextStrip {
 public:
  NextStrip(const Panels& next, int64_t num_blocks, int64_t num_steps) {
    const int64_t each = std::max<int64_t>(1, kPlaces / std::max<int64_t>(1, next.count));
    const int64_t pairs = in_blocks(num_blocks * kBlockSize / 64, each);
    for (int64_t panel = 0; panel < next.count; ++panel)
      for (int64_t i = 0; i < each; ++i) places_[num_places_++] = next.at[panel] + i * pairs * 64;
    left_ = pairs * num_places_;
    count_ = in_blocks(left_, std::max<int64_t>(1, num_steps));
  }

  TTS_INLINE void step() {
    for (int64_t i = std::min(count_, left_); i > 0; --i) {
      __builtin_prefetch(places_[place_] + at_, 0, 2);
      if (++place_ == num_places_) place_ = 0, at_ += 64;
    }
    left_ -= std::min(count_, left_);
  }

 private:
  const BF16* places_[kPlaces];
  int64_t num_places_ = 0, place_ = 0, at_ = 0, left_, count_;
};

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

// What a thread multiplies at a time: some rows, some panels of the output, and a chunk of k.
struct Strip {
  int64_t m0, m1, panel, count, chunk;
  Panels next;  // what comes after it
};

// Up to three tiles of rows, in one go.
template <int ROWS>
TTS_TARGET_AMX void few_rows(const Linear& p, const Rows& x, const Strip& s, Writer& writer) {
  alignas(64) float sums[kStrip * ROWS * kSum];
  rows_of_tiles<ROWS>(
      x.row(0, s.m0), x.stride, panels_of(p, s.panel, s.count, 0), s.next, p.depth(), true,
      [&](const BF16* const* panels, const BF16* const* behind) {
        return NextBlocks<panels_beside(ROWS)>(panels, p.depth(), behind);
      },
      sums);
  writer.begin(sums, ROWS * kSum, s.m0, s.m1 - s.m0, s.panel, s.count, 1);
  writer.finish();
}

// The sums of 32 rows of a strip.
constexpr int64_t kBlockSums = kStrip * 2 * kSum;

struct Beside {
  NextStrip& next;
  Writer& writer;

  TTS_INLINE void step() {
    next.step();
    writer.step();
  }
};

// More rows: two by two tiles, which need the fewest loads for a product, over and over. `sums` are those of the strip where k is
// cut, else room for two blocks of rows: of one they are being written, of the other computed.
TTS_TARGET_AMX void many_rows(const Linear& p, const Cut& cut, const Rows& x, const Strip& s, float* sums, Writer& writer) {
  const int64_t block = s.chunk * cut.chunk, depth = std::min(cut.chunk, p.depth() - block);
  const Panels panels = panels_of(p, s.panel, s.count, block);
  const int64_t steps = in_blocks(panels.count, 2) * depth;
  NextStrip next(s.next, depth, in_blocks(s.m1 - s.m0, 2 * kTileRows) * steps);
  Beside beside{next, writer};
  const auto ahead_of = [&](const BF16* const*, const BF16* const*) -> Beside& { return beside; };
  for (int64_t m = s.m0; m < s.m1; m += 2 * kTileRows) {
    const int64_t rows = std::min(2 * kTileRows, s.m1 - m), tiles = rows > kTileRows ? 2 : 1;
    float* to = cut.num_chunks > 1      ? sums + (m - s.m0) / (2 * kTileRows) * kBlockSums
                : writer.sums() == sums ? sums + kBlockSums
                                        : sums;
    if (writer.sums() == to) writer.finish();
    if (tiles == 2)
      rows_of_tiles<2>(x.row(s.chunk, m), x.stride, panels, s.next, depth, s.chunk == 0, ahead_of, to);
    else
      rows_of_tiles<1>(x.row(s.chunk, m), x.stride, panels, s.next, depth, s.chunk == 0, ahead_of, to);
    if (s.chunk + 1 < cut.num_chunks) continue;
    writer.finish();
    writer.begin(to, tiles * kSum, m, rows, s.panel, s.count, steps);
  }
}

void strip_of_tiles(const Linear& p, const Cut& cut, const Rows& x, const Strip& s, float* sums, Writer& writer) {
  if (cut.is_many()) return many_rows(p, cut, x, s, sums, writer);
  switch (cut.tile_rows) {
    case 1: return few_rows<1>(p, x, s, writer);
    case 2: return few_rows<2>(p, x, s, writer);
    default: return few_rows<3>(p, x, s, writer);
  }
}

// The strips of a thread's share: for each chunk of rows and some panels, chunk after chunk of k.
template <class Body>
void for_each_strip(const Linear& p, const Cut& cut, const Share& share, Body&& body) {
  const int64_t most = cut.num_chunks > 1 ? kWaitingPanels : std::max<int64_t>(1, share.panel1 - share.panel0);
  const auto panels = [&](int64_t panel, int64_t last, int64_t chunk) {
    return panels_of(p, panel, std::min(cut.width, last - panel), chunk * cut.chunk);
  };
  for (int64_t m = share.m0; m < share.m1; m += kRowChunk)
    for (int64_t first = share.panel0; first < share.panel1; first += most) {
      const int64_t last = std::min(share.panel1, first + most), following = last < share.panel1 ? last : share.panel0;
      for (int64_t c = 0; c < cut.num_chunks; ++c)
        for (int64_t panel = first; panel < last; panel += cut.width) {
          const bool is_last_panel = panel + cut.width >= last, is_last_chunk = c + 1 == cut.num_chunks;
          const Panels next = !is_last_panel   ? panels(panel + cut.width, last, c)
                              : !is_last_chunk ? panels(first, last, c + 1)
                                               : panels(following, share.panel1, 0);
          body(Strip{m, std::min(share.m1, m + kRowChunk), panel, std::min(cut.width, last - panel), c, next}, panel - first);
        }
    }
}

}  // namespace

void linear_in_tiles(const Linear& p) {
  const bool is_parallel = p.M * p.N * p.K > kParallelWork;
  const Cut cut(p, is_parallel ? max_threads() : 1);
  const int64_t copied = Rows::copied_bytes(p, cut), blocks = std::min(in_blocks(cut.tile_rows, 2), kRowChunk / (2 * kTileRows));
  const int64_t strip_sums = (cut.num_chunks > 1 ? blocks : 2) * kBlockSums;
  const int64_t thread_sums = (cut.num_chunks > 1 ? kWaitingPanels / cut.width : 1) * strip_sums;
  char* scratch = static_cast<char*>(thread_owned<Scratch>().take(copied + cut.threads * thread_sums * 4));
  const Rows x(p, cut, scratch);
#pragma omp parallel num_threads(static_cast<int>(cut.threads)) if (cut.threads > 1)
  {
    if (copied > 0) {
#pragma omp for schedule(static)
      for (int64_t m = 0; m < cut.tile_rows * kTileRows; ++m) copy_row(p, cut, x, m);
    }
    [[maybe_unused]] const TileSession session;
    float* sums = reinterpret_cast<float*>(scratch + copied) + thread_index() * thread_sums;
    Writer writer(p);
    for (int64_t share = thread_index(); share < cut.threads; share += team_size())
      for_each_strip(p, cut, cut.share(p, share), [&](const Strip& s, int64_t panel) {
        strip_of_tiles(p, cut, x, s, sums + (cut.num_chunks > 1 ? panel / cut.width * strip_sums : 0), writer);
      });
    writer.finish();
  }
}

}  // namespace tts

#else

namespace tts {
void linear_in_tiles(const Linear& p) { linear_in_float32(p, TTS_BF16); }
}  // namespace tts

#endif
