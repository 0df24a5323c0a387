// attend in bfloat16: out[i,h] = softmax(scale * q[i,h] @ K) @ V over the tokens of the work items that cover query i.
//
// A task is a block of consecutive queries x one KV head. Sixteen query heads are the lanes of a tile; a block of 64 tokens is
// laid out once (keys as rows, values transposed) and then meets the tiles one by one: scores[token, lane] = K @ Q^T, weights
// 2^(score - maximum) lane by lane, sums[d, lane] += V^T @ weights. It reads 2*D elements per token of the items that overlap the
// block, and q and out once.
//
// Invariant: the bits of a query depend on its context in its order and on nothing else. The sum over tokens goes in chunks of 32
// that begin at multiples of 32 of the position *in the context*; where a work item ends inside a chunk, its last tokens are read
// again with the items below it (`Segment`). The running maximum is an integer power of two, so rescaling is exact, and what a
// query does not see has weight 0, which adds nothing.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/isa.h"
#include "common/simd.h"
#include "common/sizes.h"
#include "common/threads.h"
#include "common/tiles.h"
#include "cpu/attend.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kChunk = kTileDepth;  // tokens summed in one step: 32
constexpr int64_t kBlockTokens = 64;    // tokens laid out at a time: keys, values, scores and weights stay in L1 up to D = 128
constexpr int64_t kMinTiles = 4, kMaxTiles = 32;  // per task
constexpr int64_t kTasksPerThread = 2;
constexpr int64_t kParallelWork = 1 << 18;  // multiply-adds below which a second thread costs more than it saves
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// ---- what is read together

struct Span {
  int32_t page, first, count;
};

// Tokens that the queries q0..q1-1 read at the same positions of their contexts, from a multiple of 32 on. Only the last segment
// of a query may end inside a chunk. Under `is_causal` query j does not see the last q1-1-j tokens.
struct Segment {
  int32_t q0, q1;
  bool is_causal;
  int64_t tokens;
  size_t first_span, last_span;
};

// Cuts the work items at multiples of 32 of the position in the context.
class Segmenter {
 public:
  std::vector<Segment> segments;
  std::vector<Span> spans;
  int64_t work = 0;  // tokens x queries

  void run(const Attend& p) {
    segments.clear();
    spans.clear();
    open_.clear();
    work = 0;
    for (int64_t w = 0; w < p.W; ++w) {
      const int32_t* item = p.items + w * 3;
      if (item[0] == item[1]) continue;
      close(item[0]);
      enter(p, w, item[0], item[1], item[2] != 0);
    }
    close(INT32_MAX);
  }

 private:
  // An item whose queries may have more items: the tokens behind its last full chunk, and the first query that has not got them.
  struct Open {
    int32_t next_query, q1;
    std::vector<Span> rest;
    int64_t rest_tokens;
  };

  void enter(const Attend& p, int64_t w, int32_t q0, int32_t q1, bool is_causal) {
    const size_t first = spans.size();
    int64_t tokens = 0;
    if (!open_.empty()) {
      finish(open_.back(), q0);
      open_.back().next_query = q1;
      spans.insert(spans.end(), open_.back().rest.begin(), open_.back().rest.end());
      tokens = open_.back().rest_tokens;
    }
    for (int64_t i = p.item_indptr[w]; i < p.item_indptr[w + 1]; ++i) {
      const int32_t* span = p.spans + i * 3;
      if (span[2] > 0) spans.push_back({span[0], span[1], span[2]});
      tokens += span[2];
    }
    if (is_causal) return add(q0, q1, true, tokens, first);
    Open open{q0, q1, {}, tokens % kChunk};
    for (int64_t left = open.rest_tokens; left > 0;) {  // the last spans, the one that the cut goes through shared out
      Span& last = spans.back();
      const int32_t count = static_cast<int32_t>(std::min<int64_t>(left, last.count));
      open.rest.insert(open.rest.begin(), {last.page, last.first + last.count - count, count});
      left -= count;
      if ((last.count -= count) == 0) spans.pop_back();
    }
    add(q0, q1, false, tokens - open.rest_tokens, first);
    open_.push_back(std::move(open));
  }

  void add(int32_t q0, int32_t q1, bool is_causal, int64_t tokens, size_t first) {
    if (tokens > 0) segments.push_back({q0, q1, is_causal, tokens, first, spans.size()});
    work += tokens * (q1 - q0);
  }

  // The queries of an item up to `query` have no further item: they get the rest now.
  void finish(Open& open, int32_t query) {
    const int32_t end = std::min(query, open.q1);
    if (open.next_query < end && open.rest_tokens > 0) {
      const size_t first = spans.size();
      spans.insert(spans.end(), open.rest.begin(), open.rest.end());
      add(open.next_query, end, false, open.rest_tokens, first);
    }
    open.next_query = std::max(open.next_query, end);
  }

  void close(int32_t query) {
    for (; !open_.empty() && open_.back().q1 <= query; open_.pop_back()) finish(open_.back(), open_.back().q1);
  }

  std::vector<Open> open_;
};

// ---- products: c[i] (+)= a[i] @ b for tiles i of 16 rows x (32 * depth) bfloat16 and b [depth][16 pairs][16 lanes][2]

struct Left {
  const BF16* rows;
  int64_t row_size, tile_size;  // elements
};

template <int TILES>
TTS_TARGET_AMX inline void multiply_some_tiles(const Left& a, const BF16* b, int64_t depth, float* c, bool adds) {
  constexpr int64_t kSum = kTileRows * kLanes;
  if (adds) {
    _tile_loadd(0, c, 64);
    if (TILES > 1) _tile_loadd(1, c + kSum, 64);
    if (TILES > 2) _tile_loadd(2, c + 2 * kSum, 64);
    if (TILES > 3) _tile_loadd(3, c + 3 * kSum, 64);
  } else {
    _tile_zero(0);
    if (TILES > 1) _tile_zero(1);
    if (TILES > 2) _tile_zero(2);
    if (TILES > 3) _tile_zero(3);
  }
  const int64_t row_bytes = a.row_size * 2;
  const BF16* rows = a.rows;
  for (int64_t k = 0; k < depth; ++k, rows += kTileDepth, b += kTileBytes / 2) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, rows, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (TILES > 1) {
      _tile_loadd(5, rows + a.tile_size, row_bytes);
      _tile_dpbf16ps(1, 5, 6);
    }
    if (TILES > 2) {
      _tile_loadd(7, rows + 2 * a.tile_size, row_bytes);
      _tile_dpbf16ps(2, 7, 6);
    }
    if (TILES > 3) {
      _tile_loadd(4, rows + 3 * a.tile_size, row_bytes);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  _tile_stored(0, c, 64);
  if (TILES > 1) _tile_stored(1, c + kSum, 64);
  if (TILES > 2) _tile_stored(2, c + 2 * kSum, 64);
  if (TILES > 3) _tile_stored(3, c + 3 * kSum, 64);
}

struct Tiles {
  using Session = TileSession;

  TTS_TARGET_AMX static void multiply(Left a, int64_t tiles, const BF16* b, int64_t depth, float* c, bool adds) {
    for (; tiles >= 4; tiles -= 4, a.rows += 4 * a.tile_size, c += 4 * kTileRows * kLanes)
      multiply_some_tiles<4>(a, b, depth, c, adds);
    if (tiles == 1) multiply_some_tiles<1>(a, b, depth, c, adds);
    if (tiles == 2) multiply_some_tiles<2>(a, b, depth, c, adds);
    if (tiles == 3) multiply_some_tiles<3>(a, b, depth, c, adds);
  }
};

struct Dots {
  struct Session {};

  TTS_TARGET_AVX512_BF16 static void multiply(const Left& a, int64_t tiles, const BF16* b, int64_t depth, float* c, bool adds) {
    for (int64_t i = 0; i < tiles; ++i, c += kTileRows * kLanes) {
      __m512 sum[kTileRows];
      for (int r = 0; r < kTileRows; ++r) sum[r] = adds ? _mm512_load_ps(c + r * kLanes) : _mm512_setzero_ps();
      for (int64_t pair = 0; pair < depth * 16; ++pair) {
        const __m512i lanes = _mm512_load_si512(b + pair * 2 * kLanes);
        for (int r = 0; r < kTileRows; ++r) {
          int32_t both;
          std::memcpy(&both, a.rows + i * a.tile_size + r * a.row_size + 2 * pair, sizeof(both));
          sum[r] = _mm512_dpbf16_ps(sum[r], reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                                    reinterpret_cast<const __m512bh&>(lanes));
        }
      }
      for (int r = 0; r < kTileRows; ++r) _mm512_store_ps(c + r * kLanes, sum[r]);
    }
  }
};

// ---- layouts

// Sixteen rows of sixteen words become columns.
TTS_TARGET_AVX512_BF16 inline void transpose(__m512i* m) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      m[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      m[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 4; ++i) {  // m[4 * q + i] holds words 4 * l + i of rows 4 * q..4 * q + 3 in its 128-bit lane l
    const __m512i a = _mm512_shuffle_i32x4(m[i], m[4 + i], 0x88), b = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(m[i], m[4 + i], 0xDD), d = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0xDD);
    t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + i] = _mm512_shuffle_i32x4(a, b, 0xDD);
    t[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(c, d, 0xDD);
  }
  for (int i = 0; i < 16; ++i) m[i] = t[i];
}

TTS_TARGET_AVX512_BF16 inline __m512i load_pairs(const BF16* row, int64_t count) {
  return count >= 32 ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << count) - 1), row);
}

// lanes[pair][lane] = elements (2 * pair, 2 * pair + 1) of rows[lane], null rows and what lies behind `dim` being 0; negated
// where the scale is negative, so that the largest score is the largest product.
TTS_TARGET_AVX512_BF16 void pack_queries(const BF16* const* rows, int64_t dim, bool negates, BF16* lanes) {
  const __m512i sign = _mm512_set1_epi32(negates ? static_cast<int>(0x80008000u) : 0);
  for (int64_t d = 0; d < dim; d += 32, lanes += kTileBytes / 2) {
    __m512i m[16];
    for (int lane = 0; lane < kLanes; ++lane)
      m[lane] = rows[lane] == nullptr ? _mm512_setzero_si512() : _mm512_xor_si512(load_pairs(rows[lane] + d, dim - d), sign);
    transpose(m);
    for (int pair = 0; pair < 16; ++pair) _mm512_store_si512(lanes + pair * 2 * kLanes, m[pair]);
  }
}

// The rows of a block of tokens, in the order of the context.
struct Rows {
  const BF16 *keys[kBlockTokens], *values[kBlockTokens];
};

// Asks for the rows of the block after the one at hand, cache line by cache line: few are under way at a time, so they are asked
// for between the other work, not at once.
class Ahead {
 public:
  void begin(const Rows& rows, int64_t tokens, int64_t dim) {
    row_ = rows.keys;
    keys_end_ = row_ + tokens;
    values_ = rows.values;
    end_ = values_ + tokens;
    row_bytes_ = dim * 2;
    byte_ = 0;
  }

  TTS_INLINE void ask(int64_t lines) {
    for (; lines > 0 && row_ != end_; --lines) {
      if (row_ == keys_end_) {
        row_ = values_;
        if (row_ == end_) return;
      }
      __builtin_prefetch(reinterpret_cast<const char*>(*row_) + byte_, 0, 2);
      if ((byte_ += 64) >= row_bytes_) {
        byte_ = 0;
        ++row_;
      }
    }
  }

 private:
  const BF16 *const *row_ = nullptr, *const *keys_end_ = nullptr, *const *values_ = nullptr, *const *end_ = nullptr;
  int64_t row_bytes_ = 0, byte_ = 0;
};

TTS_TARGET_AVX512_BF16 void copy_keys(const BF16* const* rows, int64_t tokens, int64_t dim, BF16* keys, int64_t stride,
                                      Ahead& ahead) {
  for (int64_t t = 0; t < tokens; ++t, keys += stride) {
    for (int64_t d = 0; d < dim; d += 32) _mm512_store_si512(keys + d, load_pairs(rows[t] + d, dim - d));
    ahead.ask(1);
  }
}

// values[d][token] for the tokens of whole chunks, those behind `tokens` being 0. False if an infinity or a NaN is among them.
TTS_TARGET_AVX512_BF16 bool transpose_values(const BF16* const* rows, int64_t tokens, int64_t dim, BF16* values, Ahead& ahead) {
  const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t t = 0; t < tokens; t += kChunk)
    for (int64_t d = 0; d < dim; d += 32) {
      const auto row = [&](int64_t i) __attribute__((target("arch=x86-64-v4,avx512bf16"))) {
        return i < tokens ? load_pairs(rows[i] + d, dim - d) : _mm512_setzero_si512();
      };
      // Interleaving two rows of 32 works within each 128 bits: d 0-3, 8-11, 16-19, 24-27 come first, the others second.
      __m512i first[16], second[16];
      for (int pair = 0; pair < 16; ++pair) {
        const __m512i a = row(t + 2 * pair), b = row(t + 2 * pair + 1);
        largest = _mm512_max_epu16(largest, _mm512_max_epu16(_mm512_and_si512(a, magnitude), _mm512_and_si512(b, magnitude)));
        first[pair] = _mm512_unpacklo_epi16(a, b);
        second[pair] = _mm512_unpackhi_epi16(a, b);
        ahead.ask(2);
      }
      BF16* to = values + d * kBlockTokens + t;
      transpose(first);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + (i / 4 * 8 + i % 4) * kBlockTokens, first[i]);
      transpose(second);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + (i / 4 * 8 + 4 + i % 4) * kBlockTokens, second[i]);
    }
  return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7F80)) == 0;
}

// An infinity or a NaN among the values. A weight of 0 does not silence it, so it is kept out of the products of whole tiles.
struct OddValue {
  int16_t token, d;
  float value;
};

// Moves the odd values of a block to `odd` and returns their number.
int64_t take_out_odd_values(BF16* values, int64_t tokens, int64_t dim, OddValue* odd) {
  int64_t count = 0;
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t t = 0; t < tokens; ++t) {
      BF16& value = values[d * kBlockTokens + t];
      if ((value.bits & 0x7F80) != 0x7F80) continue;
      odd[count++] = {static_cast<int16_t>(t), static_cast<int16_t>(d), load1(&value)};
      value.bits = 0;
    }
  return count;
}

// ---- one tile: sixteen query heads

struct Tile {
  BF16* queries;   // [D / 2][16][2], D in whole chunks of 32
  float* sums;     // [D][16]
  float* maximum;  // [16] powers of two that the weights are relative to; -inf: no token yet
  float* total;    // [2][16] sums of the weights at even and at odd positions
  int32_t* query;  // [16] the query of each lane, -1: none

  static int64_t bytes(int64_t dim) { return round_up(dim, 32) * 32 + round_up(dim, 16) * 64 + 4 * 64; }

  Tile(char* memory, int64_t dim)
      : queries(reinterpret_cast<BF16*>(memory)),
        sums(reinterpret_cast<float*>(memory + round_up(dim, 32) * 32)),
        maximum(sums + round_up(dim, 16) * kLanes),
        total(maximum + kLanes),
        query(reinterpret_cast<int32_t*>(total + 2 * kLanes)) {}
};

// 2^(x - base) for an integer base: exactly 2^k of what another base gives, so x is split before the base is taken off. 0 for
// -inf, NaN for NaN.
TTS_TARGET_AVX512_BF16 inline __m512 power_of_two(__m512 x, __m512 base) {
  const __m512 shift = _mm512_set1_ps(0x1.8p23f);  // adding it and taking it off again leaves round(x)
  x = _mm512_max_ps(_mm512_set1_ps(-0x1p20f), x);
  const __m512 whole = _mm512_sub_ps(_mm512_add_ps(x, shift), shift), f = _mm512_sub_ps(x, whole);
  __m512 poly = _mm512_set1_ps(0x1.5bba14p-10f);
  poly = _mm512_fmadd_ps(poly, f, _mm512_set1_ps(0x1.3cea88p-7f));
  poly = _mm512_fmadd_ps(poly, f, _mm512_set1_ps(0x1.c6b752p-5f));
  poly = _mm512_fmadd_ps(poly, f, _mm512_set1_ps(0x1.ebf9bcp-3f));
  poly = _mm512_fmadd_ps(poly, f, _mm512_set1_ps(0x1.62e42ap-1f));
  poly = _mm512_fmadd_ps(poly, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(poly, _mm512_sub_ps(whole, base));
}

// The largest score of each lane. With HIDES, what lane l does not see (tokens from visible[l] on) becomes -inf.
template <bool HIDES>
TTS_TARGET_AVX512_BF16 inline __m512 largest_scores(float* scores, int64_t tokens, __m512i visible) {
  const __m512 hidden = _mm512_set1_ps(-INFINITY);
  __m512 most[4] = {hidden, hidden, hidden, hidden};
  for (int64_t t = 0; t < tokens; t += 4)
    for (int i = 0; i < 4; ++i) {
      __m512 score = _mm512_load_ps(scores + (t + i) * kLanes);
      if (HIDES) {
        const __mmask16 sees = _mm512_cmpgt_epi32_mask(visible, _mm512_set1_epi32(static_cast<int>(t + i)));
        score = _mm512_mask_mov_ps(hidden, sees, score);
        _mm512_store_ps(scores + (t + i) * kLanes, score);
      }
      most[i] = _mm512_max_ps(most[i], score);
    }
  return _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
}

// Raises the maximum of each lane to a power of two not below `most`, and rescales what was summed: exactly.
TTS_TARGET_AVX512_BF16 inline void raise_maximum(const Tile& tile, __m512 most, int64_t dim) {
  const __m512 before = _mm512_load_ps(tile.maximum);
  const __m512 after = _mm512_max_ps(_mm512_roundscale_ps(most, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC), before);
  if (_mm512_cmp_ps_mask(after, before, _CMP_NEQ_UQ) == 0) return;
  _mm512_store_ps(tile.maximum, after);
  // From -inf the factor is 0, and what it meets is 0.
  const __m512 factor = _mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_sub_ps(before, after));
  const __mmask16 changes = _mm512_cmp_ps_mask(after, before, _CMP_NEQ_UQ);
  for (int64_t i = 0; i < 2; ++i) {
    const __m512 total = _mm512_load_ps(tile.total + i * kLanes);
    _mm512_store_ps(tile.total + i * kLanes, _mm512_mask_mul_ps(total, changes, total, factor));
  }
  for (int64_t d = 0; d < dim; ++d) {
    const __m512 sum = _mm512_load_ps(tile.sums + d * kLanes);
    _mm512_store_ps(tile.sums + d * kLanes, _mm512_mask_mul_ps(sum, changes, sum, factor));
  }
}

// weights[pair][lane] = 2^(factor * score - maximum) of tokens 2 * pair and 2 * pair + 1 of a chunk, and their sums.
TTS_TARGET_AVX512_BF16 inline void weigh_chunk(const Tile& tile, const float* scores, float factor, BF16* weights, Ahead& ahead) {
  const __m512 scale = _mm512_set1_ps(factor);
  const __m512 maximum = _mm512_load_ps(tile.maximum);
  const __m512 base =
      _mm512_mask_mov_ps(maximum, _mm512_cmp_ps_mask(maximum, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ), _mm512_setzero_ps());
  const __m512i alternate = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                             20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512 even = _mm512_load_ps(tile.total), odd = _mm512_load_ps(tile.total + kLanes);
  for (int64_t t = 0; t < kChunk; t += 2) {
    const __m512 a = power_of_two(_mm512_mul_ps(_mm512_load_ps(scores + t * kLanes), scale), base);
    const __m512 b = power_of_two(_mm512_mul_ps(_mm512_load_ps(scores + (t + 1) * kLanes), scale), base);
    even = _mm512_add_ps(even, a);
    odd = _mm512_add_ps(odd, b);
    const __m512bh both = _mm512_cvtne2ps_pbh(b, a);
    ahead.ask(4);
    _mm512_store_si512(weights + t * kLanes, _mm512_permutexvar_epi16(alternate, reinterpret_cast<const __m512i&>(both)));
  }
  _mm512_store_ps(tile.total, even);
  _mm512_store_ps(tile.total + kLanes, odd);
}

// ---- a task

template <class Products>
class Task {
 public:
  static int64_t bytes(const Attend& p, int64_t tiles) { return shared_bytes(p.D) + round_up(tiles * Tile::bytes(p.D), 64); }

  Task(const Attend& p, const Segmenter& s, int64_t q0, int64_t q1, int64_t g, char* memory)
      : p_(p), s_(s), q0_(q0), q1_(q1), g_(g), memory_(memory) {
    keys_ = reinterpret_cast<BF16*>(memory);
    values_ = keys_ + kBlockTokens * key_stride();
    weights_[0] = values_ + round_up(p.D, 32) * kBlockTokens;
    weights_[1] = weights_[0] + kBlockTokens * kLanes;
    scores_[0] = reinterpret_cast<float*>(weights_[1] + kBlockTokens * kLanes);
    scores_[1] = scores_[0] + kBlockTokens * kLanes;
    odd_ = reinterpret_cast<OddValue*>(scores_[1] + kBlockTokens * kLanes);
  }

  // Lanes of a query: a power of two, so that a query's heads lie in one tile, or whole tiles.
  static int64_t lanes_per_query(int64_t group) {
    int64_t lanes = 1;
    while (lanes < std::min<int64_t>(group, kLanes)) lanes *= 2;
    return group > kLanes ? round_up(group, kLanes) : lanes;
  }

  void run() {
    for (int64_t i = 0; i < num_tiles(); ++i) begin(i);
    Block blocks[2];
    advance(&blocks[0]);
    for (int64_t at = 0; blocks[at].segment != nullptr; at = 1 - at) {
      const Block &here = blocks[at], &following = blocks[1 - at];
      advance(&blocks[1 - at]);
      lay_out(here, following);
      meet(here);
    }
    for (int64_t i = 0; i < num_tiles(); ++i) end(i);
  }

 private:
  static int64_t shared_bytes(int64_t dim) {
    const int64_t odd = dim * static_cast<int64_t>(sizeof(OddValue));
    return kBlockTokens * (2 * 2 * round_up(dim, 32) + 2 * (2 + 4) * kLanes + odd);
  }

  int64_t key_stride() const { return round_up(p_.D, 32); }
  int64_t group() const { return p_.H / p_.G; }
  int64_t lanes() const { return lanes_per_query(group()); }
  int64_t num_tiles() const { return ((q1_ - q0_) * lanes() + kLanes - 1) / kLanes; }
  Tile tile(int64_t i) const { return {memory_ + shared_bytes(p_.D) + i * Tile::bytes(p_.D), p_.D}; }

  // The query of a lane and its head within the group; -1 where the lane is not used.
  int64_t query_of(int64_t tile, int64_t lane, int64_t* head) const {
    const int64_t at = tile * kLanes + lane, query = q0_ + at / lanes();
    *head = at % lanes();
    return query < q1_ && *head < group() ? query : -1;
  }

  TTS_TARGET_AVX512_BF16 void begin(int64_t i) {
    const Tile t = tile(i);
    const BF16* rows[kLanes];
    for (int64_t lane = 0, head; lane < kLanes; ++lane) {
      const int64_t query = query_of(i, lane, &head);
      t.query[lane] = static_cast<int32_t>(query);
      rows[lane] = query < 0 ? nullptr : static_cast<const BF16*>(p_.q) + query * p_.q_token + (g_ * group() + head) * p_.q_head;
      t.maximum[lane] = -INFINITY;
    }
    pack_queries(rows, p_.D, p_.scale < 0, t.queries);
    std::memset(t.total, 0, 2 * kLanes * sizeof(float));
    std::memset(t.sums, 0, static_cast<size_t>(round_up(p_.D, 16) * kLanes) * sizeof(float));
  }

  // Up to kBlockTokens tokens of a segment, from its token `done` on, and the tiles that read them.
  struct Block {
    const Segment* segment = nullptr;
    int64_t done = 0, tokens = 0, first_tile = 0, last_tile = 0;
    Rows rows;
  };

  // The next block of the task; without a segment behind the last.
  void advance(Block* block) {
    while (left_ == 0) {
      if (next_segment_ == s_.segments.size()) {
        block->segment = nullptr;
        block->tokens = 0;
        return;
      }
      open(s_.segments[next_segment_++]);
    }
    const Segment& segment = s_.segments[next_segment_ - 1];
    const int64_t per_tile = std::max<int64_t>(1, kLanes / lanes()), tiles_per_query = std::max<int64_t>(1, lanes() / kLanes);
    block->segment = &segment;
    block->first_tile = (std::max<int64_t>(segment.q0, q0_) - q0_) / per_tile * tiles_per_query;
    block->last_tile = (std::min<int64_t>(segment.q1, q1_) - 1 - q0_) / per_tile * tiles_per_query + tiles_per_query;
    block->done = done_;
    block->tokens = std::min(kBlockTokens, left_);
    find_rows(block->tokens, &block->rows);
    done_ += block->tokens;
    left_ -= block->tokens;
  }

  void open(const Segment& segment) {
    const bool concerns = segment.q0 < q1_ && q0_ < segment.q1;
    const int64_t hidden = segment.is_causal ? std::max<int64_t>(0, segment.q1 - q1_) : 0;  // from all queries of the task
    left_ = concerns ? std::max<int64_t>(0, segment.tokens - hidden) : 0;
    done_ = offset_ = 0;
    span_ = segment.first_span;
  }

  void find_rows(int64_t tokens, Rows* rows) {
    const auto* keys = static_cast<const BF16*>(p_.keys.data) + g_ * p_.keys.head;
    const auto* values = static_cast<const BF16*>(p_.values.data) + g_ * p_.values.head;
    for (int64_t t = 0; t < tokens;) {
      const Span& span = s_.spans[span_];
      const int64_t count = std::min(tokens - t, span.count - offset_), slot = span.first + offset_;
      const BF16* key = keys + span.page * p_.keys.page + slot * p_.keys.slot;
      const BF16* value = values + span.page * p_.values.page + slot * p_.values.slot;
      for (int64_t i = 0; i < count; ++i, ++t, key += p_.keys.slot, value += p_.values.slot) {
        rows->keys[t] = key;
        rows->values[t] = value;
      }
      if ((offset_ += count) == span.count) {
        ++span_;
        offset_ = 0;
      }
    }
  }

  // Brings a block into keys_ and values_, and asks for the following one.
  TTS_TARGET_AVX512_BF16 void lay_out(const Block& block, const Block& following) {
    ahead_.begin(following.rows, following.tokens, p_.D);
    copy_keys(block.rows.keys, block.tokens, p_.D, keys_, key_stride(), ahead_);
    const bool all_finite = transpose_values(block.rows.values, block.tokens, p_.D, values_, ahead_);
    num_odd_ = all_finite ? 0 : take_out_odd_values(values_, block.tokens, p_.D, odd_);
  }

  // Adds what was taken out of the values to the lanes that see it.
  void add_odd_values(const Tile& tile, const int32_t* sees, const BF16* weights) const {
    for (const OddValue* odd = odd_; odd != odd_ + num_odd_; ++odd)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        if (odd->token < sees[lane])
          tile.sums[odd->d * kLanes + lane] +=
              load1(weights + odd->token / 2 * 2 * kLanes + lane * 2 + odd->token % 2) * odd->value;
  }

  // What the lanes of a tile see of a block.
  struct View {
    alignas(64) int32_t sees[kLanes];  // tokens, from the block's first on
    int64_t tokens;                    // in whole chunks; 0: nothing
    bool hides;                        // not every lane sees all of them
  };

  TTS_TARGET_AVX512_BF16 void look(const Tile& tile, const Block& block, View* view) const {
    const Segment& segment = *block.segment;
    const __m512i query = _mm512_loadu_si512(tile.query);
    const __mmask16 takes_part = _mm512_cmpge_epi32_mask(query, _mm512_set1_epi32(segment.q0)) &
                                 _mm512_cmplt_epi32_mask(query, _mm512_set1_epi32(segment.q1));
    __m512i sees = _mm512_set1_epi32(static_cast<int>(std::min<int64_t>(segment.tokens - block.done, INT32_MAX)));
    if (segment.is_causal) sees = _mm512_sub_epi32(sees, _mm512_sub_epi32(_mm512_set1_epi32(segment.q1 - 1), query));
    sees = _mm512_maskz_mov_epi32(takes_part, sees);
    _mm512_store_si512(view->sees, sees);
    const int64_t most = std::min<int64_t>(block.tokens, _mm512_reduce_max_epi32(sees));
    view->tokens = std::max<int64_t>(0, round_up(most, kChunk));
    // Lanes without a query hold zeros, whatever they see; those of other queries must not move.
    const __mmask16 exists = _mm512_cmpge_epi32_mask(query, _mm512_setzero_si512());
    view->hides = _mm512_mask_cmplt_epi32_mask(exists, sees, _mm512_set1_epi32(static_cast<int>(view->tokens))) != 0;
  }

  // Scores of one chunk of the block's tokens.
  void score_chunk(const Tile& tile, int64_t first_token, float* scores) const {
    const int64_t stride = key_stride();
    const Left keys{keys_ + first_token * stride, stride, kTileRows * stride};
    Products::multiply(keys, kChunk / kTileRows, tile.queries, stride / kTileDepth, scores + first_token * kLanes, false);
  }

  // A block meets the tiles that read it. The scores of the following tile are made between the weights of this one: products
  // and exponentials run in different units.
  TTS_TARGET_AVX512_BF16 void meet(const Block& block) {
    View views[2];
    look(tile(block.first_tile), block, &views[0]);
    for (int64_t t = 0; t < views[0].tokens; t += kChunk) score_chunk(tile(block.first_tile), t, scores_[0]);
    for (int64_t i = block.first_tile, at = 0; i < block.last_tile; ++i, at = 1 - at) {
      View& following = views[1 - at];
      following.tokens = 0;
      const Tile next = tile(std::min(i + 1, block.last_tile - 1));
      if (i + 1 < block.last_tile) look(next, block, &following);
      weigh_and_sum(tile(i), views[at], scores_[at], next, following, scores_[1 - at], weights_[at]);
    }
  }

  TTS_TARGET_AVX512_BF16 void weigh_and_sum(const Tile& tile, const View& view, float* scores, const Tile& next,
                                            const View& following, float* next_scores, BF16* weights) {
    const float factor = std::fabs(p_.scale) * kLog2E;
    if (view.tokens > 0) {
      const __m512i sees = _mm512_load_si512(view.sees);
      const __m512 most =
          view.hides ? largest_scores<true>(scores, view.tokens, sees) : largest_scores<false>(scores, view.tokens, sees);
      raise_maximum(tile, _mm512_mul_ps(most, _mm512_set1_ps(factor)), p_.D);
    }
    for (int64_t t = 0; t < std::max(view.tokens, following.tokens); t += kChunk) {
      if (t < view.tokens) weigh_chunk(tile, scores + t * kLanes, factor, weights + t * kLanes, ahead_);
      if (t < following.tokens) score_chunk(next, t, next_scores);
    }
    if (view.tokens == 0) return;
    Products::multiply({values_, kBlockTokens, kTileRows * kBlockTokens}, round_up(p_.D, 16) / kTileRows, weights,
                       view.tokens / kChunk, tile.sums, true);
    if (num_odd_ > 0) add_odd_values(tile, view.sees, weights);
  }

  TTS_TARGET_AVX512_BF16 void end(int64_t i) {
    const Tile t = tile(i);
    const __m512 total = _mm512_add_ps(_mm512_load_ps(t.total), _mm512_load_ps(t.total + kLanes));
    const __mmask16 is_empty = _mm512_cmp_ps_mask(total, _mm512_setzero_ps(), _CMP_EQ_OQ);
    alignas(64) float totals[kLanes];
    _mm512_store_ps(totals, total);
    const __m512 inverse =
        _mm512_mask_div_ps(_mm512_setzero_ps(), static_cast<__mmask16>(~is_empty), _mm512_set1_ps(1.0f), total);
    BF16* rows[kLanes];
    for (int64_t lane = 0, head; lane < kLanes; ++lane) {
      const int64_t query = query_of(i, lane, &head), at = query * p_.H + g_ * group() + head;
      rows[lane] = query < 0 ? nullptr : static_cast<BF16*>(p_.out) + at * p_.D;
      if (query >= 0) p_.lse[at] = totals[lane] == 0 ? -INFINITY : (t.maximum[lane] + std::log2(totals[lane])) * kLn2;
    }
    for (int64_t d = 0; d < p_.D; d += 16) {
      __m512i m[16];
      for (int j = 0; j < 16; ++j) m[j] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(t.sums + (d + j) * kLanes), inverse));
      transpose(m);
      const __mmask16 exists = p_.D - d >= 16 ? 0xFFFF : 0x00FF;
      for (int lane = 0; lane < kLanes; ++lane) {
        const __m256bh row = _mm512_cvtneps_pbh(_mm512_castsi512_ps(m[lane]));
        if (rows[lane] != nullptr) _mm256_mask_storeu_epi16(rows[lane] + d, exists, reinterpret_cast<const __m256i&>(row));
      }
    }
  }

  const Attend& p_;
  const Segmenter& s_;
  const int64_t q0_, q1_, g_;
  char* const memory_;
  BF16 *keys_, *values_;  // [kBlockTokens][D in chunks], [D][kBlockTokens]
  BF16* weights_[2];      // [kBlockTokens / 2][16][2] of a tile and of the following one
  float* scores_[2];      // [kBlockTokens][16]
  OddValue* odd_;         // [num_odd_] of the block at hand
  int64_t num_odd_ = 0;
  Ahead ahead_;
  size_t next_segment_ = 0, span_ = 0;        // the segment behind the open one, and where the next block begins in that
  int64_t offset_ = 0, done_ = 0, left_ = 0;  // in the span; tokens of the open segment
};

template <class Products>
void run(const Attend& p) {
  Segmenter& segmenter = thread_owned<Segmenter>();
  segmenter.run(p);
  const int64_t lanes = Task<Products>::lanes_per_query(p.H / p.G), all_tiles = (p.N * lanes + kLanes - 1) / kLanes;
  const int threads = segmenter.work * p.H * p.D * 2 > kParallelWork ? max_threads() : 1;
  const int64_t share = (all_tiles * p.G + kTasksPerThread * threads - 1) / (kTasksPerThread * threads);
  const int64_t tiles = std::clamp(share, kMinTiles, kMaxTiles);
  const int64_t queries = std::max<int64_t>(1, tiles * kLanes / lanes), blocks = (p.N + queries - 1) / queries;
  const int64_t bytes = round_up(Task<Products>::bytes(p, std::max(tiles, lanes / kLanes)), 64);
  char* memory = static_cast<char*>(thread_owned<Scratch>().take(threads * bytes));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    [[maybe_unused]] const typename Products::Session session;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < blocks * p.G; ++task) {
      const int64_t q0 = task / p.G * queries;
      Task<Products>(p, segmenter, q0, std::min(p.N, q0 + queries), task % p.G, memory + thread_index() * bytes).run();
    }
  }
}

}  // namespace

void attend_in_bf16(const Attend& p) {
  if (has_bf16_tiles())
    run<Tiles>(p);
  else
    run<Dots>(p);
}

}  // namespace tts

#else

namespace tts {
void attend_in_bf16(const Attend& p) { attend_in_float32(p, TTS_BF16); }
}  // namespace tts

#endif
