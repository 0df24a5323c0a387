// linear in bfloat16 on the AMX tile unit, and silu_and_mul of its result where the two halves of it are panels.
//
// Of few rows a thread takes consecutive panels of 16 columns of the output, of many its own rows and all panels, so that it
// reads what it has just written itself; one that is done goes on with what a slower one has not begun. Many rows meet a weight
// in two by two tiles; where they do not fit L2, k is cut into chunks whose x fits, and the sums wait in float32 in between. What
// is read next is on its way to L2 meanwhile.
//
// Invariant: an element is summed over k in ascending blocks of 32; no other row or column and no chunk enters its bits.
#include <atomic>
#include <cstring>
#include <vector>

#include "common/tiles.h"
#include "cpu/linear.h"
#include "cpu/linear_tiles_products.h"
#include "cpu/linear_tiles_writer.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kRowChunk = 256;        // rows for which a weight is read once
constexpr int64_t kParts = 8;             // of a thread's share, which others take over when their own are done ...
constexpr int64_t kSmallParts = 32;       // ... and where x lies in L2 at once, so that its parts may be small
constexpr int64_t kThreadRows = 64;       // from which a thread takes rows of its own and all of the weight
constexpr int64_t kRowsAtOnce = 2;        // tiles of rows that are multiplied in one go: DRAM is what these wait for
constexpr int64_t kChunkBytes = 1 << 20;  // of x: half of a usual L2
constexpr int64_t kWaitingPanels = 32;    // of the output, whose sums wait for the next chunk: 512 KB at 256 rows, gated 1 MB
constexpr int64_t kMaxLineStep = 8;       // power of two in a row's cache lines, of 64 sets: 8 of them for 16 rows of a tile

// Rows and output panels that are computed without a break, and where the panels end that most likely come after them.
struct Share {
  int64_t m0, m1, panel0, panel1, last;
};

// The parts of a thread's share that somebody works on or has done.
struct alignas(64) Taken {
  std::atomic<int64_t> parts{0};
};

// How a call is cut: many rows are shared out between the threads, fewer meet each a thread's panels.
struct Cut {
  int64_t tile_rows, threads;
  bool is_by_rows;
  int64_t chunk, num_chunks, width, parts;  // blocks of k in a chunk, output panels in a strip, parts of a thread's share

  Cut(const Linear& p, int64_t threads) : tile_rows(in_blocks(p.M, kTileRows)), threads(threads) {
    is_by_rows = threads > 1 && p.M >= kThreadRows * threads;
    const int64_t rows =
        std::min(is_by_rows ? in_blocks(tile_rows, 2 * threads) * 2 * kTileRows : tile_rows * kTileRows, kRowChunk);
    num_chunks = is_many() ? std::max<int64_t>(1, in_blocks(rows * p.depth() * kPanelDepth * 2, kChunkBytes)) : 1;
    chunk = std::max<int64_t>(1, in_blocks(p.depth(), num_chunks));
    num_chunks = std::max<int64_t>(1, in_blocks(p.depth(), chunk));
    // This strip and the next, both in L2, are to leave room there for x, which needs it from four tiles of rows on.
    width = p.is_gated || (tile_rows > 3 && p.depth() > 64) ? kStrip / 2 : kStrip;
    const int64_t strips = in_blocks(in_blocks(p.columns(), kPanelColumns), width);
    const bool is_small = !is_by_rows && num_chunks == 1 && p.M <= kRowChunk;
    parts = std::clamp<int64_t>(in_blocks(strips, is_by_rows ? 1 : threads), 1, is_small ? kSmallParts : kParts);
  }

  bool is_many() const { return tile_rows > kRowsAtOnce; }

  // Whether sums wait for the next chunk.
  bool waits() const { return num_chunks > 1; }

  // The sums of 32 rows of a strip.
  int64_t block_sums(const Linear& p) const { return width * (p.is_gated ? 2 : 1) * 2 * kSum; }

  // One of the parts of a thread's share: all of its rows, some of its panels.
  Share share(const Linear& p, int64_t thread, int64_t part) const {
    const int64_t panels = in_blocks(p.columns(), kPanelColumns);
    const auto cut = [](int64_t count, int64_t step, int64_t i, int64_t of) {
      return std::min(count, in_blocks(count, step) * i / of * step);
    };
    const int64_t row_parts = is_by_rows ? threads : 1, panel_parts = parts * (is_by_rows ? 1 : threads);
    const int64_t row_part = is_by_rows ? thread : 0, panel_part = is_by_rows ? part : thread * parts + part;
    return {cut(p.M, 2 * kTileRows, row_part, row_parts), cut(p.M, 2 * kTileRows, row_part + 1, row_parts),
            cut(panels, width, panel_part, panel_parts), cut(panels, width, panel_part + 1, panel_parts),
            cut(panels, width, is_by_rows ? parts : (thread + 1) * parts, panel_parts)};
  }
};

// x as tiles are loaded from it: in place where its rows are whole blocks of k and those of a tile spread over the sets of L1,
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
  if (count <= 0) return panels;
  const auto add = [&](int64_t panel) {
    panels.at[panels.count++] = static_cast<const BF16*>(p.weight) + (panel * p.depth() + block) * kBlockSize;
  };
  for (int64_t i = 0; i < count; ++i) add(first + i);
  for (int64_t i = 0; i < count && p.is_gated; ++i) add(first + i + p.columns() / kPanelColumns);
  for (int64_t i = panels.count; i < kStrip; ++i) panels.at[i] = panels.at[panels.count - 1];
  return panels;
}

// What a thread multiplies at a time: some rows, some panels of the output, and a chunk of k.
struct Strip {
  int64_t m0, m1, panel, count, chunk;
  Panels next;  // what comes after it
};

// One or two tiles of rows, in one go.
template <int ROWS>
TTS_TARGET_AMX void few_rows(const Linear& p, const Rows& x, const Strip& s, Writer& writer) {
  alignas(64) float sums[kStrip * ROWS * kSum];
  NextStrip next(s.next, p.depth(), std::max<int64_t>(1, in_blocks(s.count, panels_beside(ROWS)) * p.depth()));
  rows_of_tiles<ROWS>(x.row(0, s.m0), x.stride, panels_of(p, s.panel, s.count, 0), p.depth(), true, next, sums);
  writer.begin(sums, ROWS * kSum, s.m0, s.m1 - s.m0, s.panel, s.count, 1);
  writer.finish();
}

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
  const int64_t steps = std::max<int64_t>(1, in_blocks(panels.count, 2) * depth);
  NextStrip next(s.next, depth, in_blocks(s.m1 - s.m0, 2 * kTileRows) * steps);
  Beside beside{next, writer};
  for (int64_t m = s.m0; m < s.m1; m += 2 * kTileRows) {
    const int64_t rows = std::min(2 * kTileRows, s.m1 - m), tiles = rows > kTileRows ? 2 : 1;
    const int64_t turn = cut.waits() ? (m - s.m0) / (2 * kTileRows) : writer.sums() == sums;
    float* to = sums + turn * cut.block_sums(p);
    if (writer.sums() == to) writer.finish();
    if (tiles == 2)
      rows_of_tiles<2>(x.row(s.chunk, m), x.stride, panels, depth, s.chunk == 0, beside, to);
    else
      rows_of_tiles<1>(x.row(s.chunk, m), x.stride, panels, depth, s.chunk == 0, beside, to);
    if (s.chunk + 1 < cut.num_chunks) continue;
    writer.finish();
    writer.begin(to, tiles * kSum, m, rows, s.panel, s.count, steps);
  }
}

void strip_of_tiles(const Linear& p, const Cut& cut, const Rows& x, const Strip& s, float* sums, Writer& writer) {
  if (cut.is_many()) return many_rows(p, cut, x, s, sums, writer);
  if (cut.tile_rows == 1) return few_rows<1>(p, x, s, writer);
  few_rows<2>(p, x, s, writer);
}

// The strips of a thread's share: for each chunk of rows and some panels, chunk after chunk of k.
template <class Body>
void for_each_strip(const Linear& p, const Cut& cut, const Share& share, Body&& body) {
  const int64_t most = cut.waits() ? kWaitingPanels : std::max<int64_t>(1, share.panel1 - share.panel0);
  const auto panels = [&](int64_t panel, int64_t last, int64_t chunk) {
    return panels_of(p, panel, std::min(cut.width, last - panel), chunk * cut.chunk);
  };
  for (int64_t m = share.m0; m < share.m1; m += kRowChunk)
    for (int64_t first = share.panel0; first < share.panel1; first += most) {
      const int64_t last = std::min(share.panel1, first + most);
      const bool is_read_again = last == share.panel1 && m + kRowChunk < share.m1;
      const int64_t following = is_read_again ? share.panel0 : last;
      for (int64_t c = 0; c < cut.num_chunks; ++c)
        for (int64_t panel = first; panel < last; panel += cut.width) {
          const bool is_last_panel = panel + cut.width >= last, is_last_chunk = c + 1 == cut.num_chunks;
          const Panels next = !is_last_panel   ? panels(panel + cut.width, last, c)
                              : !is_last_chunk ? panels(first, last, c + 1)
                                               : panels(following, share.last, 0);
          body(Strip{m, std::min(share.m1, m + kRowChunk), panel, std::min(cut.width, last - panel), c, next}, panel - first);
        }
    }
}

}  // namespace

void linear_in_tiles(const Linear& p) {
  const bool is_parallel = p.M * p.N * p.K > kParallelWork;
  const Cut cut(p, is_parallel ? max_threads() : 1);
  const int64_t copied = Rows::copied_bytes(p, cut), blocks = std::min(in_blocks(cut.tile_rows, 2), kRowChunk / (2 * kTileRows));
  const int64_t strip_sums = (cut.waits() ? blocks : 2) * cut.block_sums(p);
  const int64_t thread_sums = (cut.waits() ? kWaitingPanels / cut.width : 1) * strip_sums;
  char* scratch = static_cast<char*>(thread_owned<Scratch>().take(copied + cut.threads * thread_sums * 4));
  const Rows x(p, cut, scratch);
  std::vector<Taken> taken(static_cast<size_t>(cut.threads));
#pragma omp parallel num_threads(static_cast<int>(cut.threads)) if (cut.threads > 1)
  {
    if (copied > 0) {
#pragma omp for schedule(static)
      for (int64_t m = 0; m < cut.tile_rows * kTileRows; ++m) copy_row(p, cut, x, m);
    }
    [[maybe_unused]] const TileSession session;
    float* sums = reinterpret_cast<float*>(scratch + copied) + thread_index() * thread_sums;
    Writer writer(p);
    for (int64_t i = 0; i < cut.threads; ++i) {
      const int64_t owner = (thread_index() + i) % cut.threads;
      std::atomic<int64_t>& taken_parts = taken[static_cast<size_t>(owner)].parts;
      for (int64_t part; (part = taken_parts.fetch_add(1, std::memory_order_relaxed)) < cut.parts;)
        for_each_strip(p, cut, cut.share(p, owner, part), [&](const Strip& s, int64_t panel) {
          strip_of_tiles(p, cut, x, s, sums + (cut.waits() ? panel / cut.width * strip_sums : 0), writer);
        });
    }
    writer.finish();
  }
}

}  // namespace tts

#else

namespace tts {
void linear_in_tiles(const Linear& p) { linear_in_float32(p, TTS_BF16); }
}  // namespace tts

#endif
