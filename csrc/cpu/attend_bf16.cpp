// attend in bfloat16: out[i,h] = softmax(scale * q[i,h] @ K) @ V over the tokens of the work items that cover query i.
//
// A task is a block of consecutive queries x one KV head. Sixteen query heads are the lanes of a tile; a block of 96 tokens is
// laid out once (keys as rows, values transposed) and then meets the tiles one by one: scores[token, lane] = K @ Q^T, weights
// 2^(score - maximum) lane by lane, sums[d, lane] += V^T @ weights. What few lanes read is not laid out: attend_bf16_eight.h. It
// reads 2*D elements per token of the items that overlap the block, and q and out once.
//
// Invariant: the bits of a query depend on its context in its order and on nothing else. The sum over tokens goes in chunks of 32
// that begin at multiples of 32 of the position *in the context*; where a work item ends inside a chunk, its last tokens are read
// again with the items below it (`Segment`). The running maximum is an integer power of two, so rescaling is exact, and what a
// query does not see has weight 0, which adds nothing.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "common/isa.h"
#include "common/simd.h"
#include "common/sizes.h"
#include "common/threads.h"
#include "common/tiles.h"
#include "cpu/attend.h"
#include "cpu/attend_bf16_blocks.h"
#include "cpu/attend_bf16_eight.h"
#include "cpu/attend_bf16_layout.h"
#include "cpu/attend_bf16_products.h"
#include "cpu/attend_bf16_segments.h"
#include "cpu/attend_bf16_tile.h"
#include "cpu/attend_bf16_weights.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kMinTiles = 4, kMaxTiles = 32;  // per task
constexpr int64_t kMostEights = 2;                // eight lanes each, that a block meets without being laid out
constexpr int64_t kParallelWork = 1 << 18;        // multiply-adds below which a second thread costs more than it saves
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// weights[pair][lane] = 2^(factor * score - maximum) of tokens 2 * pair and 2 * pair + 1, and their sums; beside it the steps of
// `products`, spread over the tokens. (The target allows tiles; where they are missing, the products are of another kind.)
template <class Products>
TTS_TARGET_AMX inline void weigh(const Tile& tile, const float* scores, int64_t tokens, const Exponents& exponents, BF16* weights,
                                 Products& products, Ahead& ahead) {
  const __m512i ones = _mm512_set1_epi16(0x3F80);
  __m512 total = _mm512_load_ps(tile.total), following = _mm512_load_ps(tile.total + kLanes);
  const int64_t num_steps = products.num_steps();
  for (int64_t t = 0, steps = 0; t < tokens; t += 2) {
    for (steps += 2 * num_steps; steps >= tokens; steps -= tokens) products.step();
    const __m512i pair = weights_of(_mm512_load_ps(scores + t * kLanes), _mm512_load_ps(scores + (t + 1) * kLanes), exponents);
    _mm512_store_si512(weights + t * kLanes, pair);
    const __m512 sum = _mm512_dpbf16_ps(total, reinterpret_cast<const __m512bh&>(pair), reinterpret_cast<const __m512bh&>(ones));
    total = following, following = sum;  // two sums in turn: one would wait for itself
    if (t % 4 == 0) ahead.ask();
  }
  _mm512_store_ps(tile.total, total);
  _mm512_store_ps(tile.total + kLanes, following);
}

// ---- a task

template <class Products>
class Task {
 public:
  static int64_t bytes(const Attend& p, int64_t tiles) { return shared_bytes(p.D) + round_up(tiles * Tile::bytes(p.D), 64); }

  Task(const Attend& p, const Segmenter& s, int64_t lanes, int64_t q0, int64_t q1, int64_t g, char* memory)
      : p_(p), lanes_(lanes), q0_(q0), q1_(q1), g_(g), memory_(memory), blocks_(p, s, lanes, q0, q1, g) {
    keys_ = reinterpret_cast<BF16*>(memory);
    values_ = keys_ + kBlockTokens * key_stride();
    weights_[0] = values_ + round_up(p.D, 32) * kBlockTokens;
    weights_[1] = weights_[0] + kBlockTokens * kLanes;
    scores_[0] = reinterpret_cast<float*>(weights_[1] + kBlockTokens * kLanes);
    scores_[1] = scores_[0] + kBlockTokens * kLanes;
    odd_ = reinterpret_cast<OddValue*>(scores_[1] + kBlockTokens * kLanes);
    turned_ = reinterpret_cast<float*>(keys_);  // which no block needs then
  }

  void run() {
    for (int64_t i = 0; i < num_tiles(); ++i) begin(i);
    Block blocks[2];
    blocks_.advance(&blocks[0]);
    for (int64_t at = 0; blocks[at].segment != nullptr; at = 1 - at) {
      const Block &here = blocks[at], &following = blocks[1 - at];
      blocks_.advance(&blocks[1 - at]);
      ahead_.begin(following.runs, p_.D);
      if (meet_in_eights(here)) continue;
      use_tiles(false);
      lay_out(here);
      meet(here);
    }
    use_tiles(false);
    for (int64_t i = 0; i < num_tiles(); ++i) end(i);
  }

 private:
  static int64_t shared_bytes(int64_t dim) {
    const int64_t odd = dim * static_cast<int64_t>(sizeof(OddValue));
    return kBlockTokens * (2 * 2 * round_up(dim, 32) + 2 * (2 + 4) * kLanes + odd);
  }

  int64_t key_stride() const { return round_up(p_.D, 32); }
  int64_t group() const { return p_.H / p_.G; }
  int64_t num_tiles() const { return in_blocks((q1_ - q0_) * lanes_, kLanes); }
  Tile tile(int64_t i) const { return {memory_ + shared_bytes(p_.D) + i * Tile::bytes(p_.D), p_.D}; }

  // Of the scores, whose sign is that of the queries as they are packed; not 0, which makes NaN of what is hidden, -inf.
  float factor() const { return std::max(std::fabs(p_.scale) * kLog2E, FLT_MIN); }

  // The query of a lane and its head within the group; -1 where the lane is not used.
  int64_t query_of(int64_t tile, int64_t lane, int64_t* head) const {
    const int64_t at = tile * kLanes + lane, query = q0_ + at / lanes_;
    *head = at % lanes_;
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
    *t.largest = pack_queries(rows, p_.D, p_.scale < 0, t.queries);
    std::memset(t.total, 0, 2 * kLanes * sizeof(float));
    std::memset(t.sums, 0, static_cast<size_t>(key_stride() * kLanes) * sizeof(float));
    *t.by_lane = false;
  }

  // Brings a block into keys_ and values_.
  TTS_TARGET_AVX512_BF16 void lay_out(const Block& block) {
    for (int64_t i = block.first_lane / kLanes; i < in_blocks(block.last_lane, kLanes); ++i) order_sums(tile(i), false);
    largest_key_ = copy_keys(keys_of(block.runs).at, block.tokens, p_.D, keys_, key_stride(), ahead_);
    const bool all_finite = transpose_values(values_of(block.runs).at, block.tokens, p_.D, values_, ahead_);
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

  // scores[token][lane] of the tokens that a tile sees.
  Product scores_of(const Tile& tile, const View& view, float* scores) const {
    const int64_t stride = key_stride();
    return {{keys_, stride, kTileRows * stride}, view.tokens / kTileRows, tile.queries, stride / kTileDepth, scores, false};
  }

  // The values that a tile sees, weighed, to its sums.
  Product sums_of(const Tile& tile, const View& view, const BF16* weights) const {
    const int64_t tiles = view.tokens > 0 ? round_up(p_.D, 16) / kTileRows : 0;
    return {{values_, kBlockTokens, kTileRows * kBlockTokens}, tiles, weights, view.tokens / kChunk, tile.sums, true};
  }

  // A block meets the tiles that read it. Products and exponentials run in different units, so beside the weights of a tile go
  // the scores of the following one and the sums of the one before.
  void meet(const Block& block) {
    View views[3];
    const int64_t begin = block.first_lane / kLanes, end = in_blocks(block.last_lane, kLanes);
    const auto view = [&](int64_t i) -> View& { return views[(i - begin) % 3]; };
    const auto turn = [&](int64_t i) { return (i - begin) % 2; };
    for (int64_t i = begin - 1; i <= end; ++i) {
      products_.begin();
      if (i > begin) products_.add(sums_of(tile(i - 1), view(i - 1), weights_[turn(i - 1)]));
      if (i + 1 < end) {
        look(tile(i + 1), block, &view(i + 1));
        products_.add(scores_of(tile(i + 1), view(i + 1), scores_[turn(i + 1)]));
      }
      if (i >= begin && i < end) weigh_tile(tile(i), view(i), scores_[turn(i)], weights_[turn(i)]);
      products_.finish([&] { ahead_.ask(); });
      if (i > begin && num_odd_ > 0) add_odd_values(tile(i - 1), view(i - 1).sees, weights_[turn(i - 1)]);
    }
  }

  // Where few lanes read a block, eight of them at a time. False where that is not the case, or a value is infinite or NaN.
  TTS_TARGET_AMX bool meet_in_eights(const Block& block) {
    if constexpr (!Products::kTakesEight) return false;
    const int64_t begin = block.first_lane / kEight, end = in_blocks(block.last_lane, kEight);
    if (end - begin > kMostEights) return false;
    for (int64_t i = begin / 2; i <= (end - 1) / 2; ++i) order_sums(tile(i), true);
    use_tiles(true);
    KeyTile keys[kBlockTokens];
    const int64_t num_keys = find_keys(block, keys);
    const Rows rows = values_of(block.runs);
    Interleaver values(rows, block.tokens, p_.D, values_);
    for (int64_t i = begin; i < end; ++i) {
      const Tile lanes = tile(i / 2);
      const int64_t first = i % 2 * kEight;
      View view;
      look(lanes, block, &view);
      if (i > begin && view.tokens == 0) continue;
      score_eight(keys, num_keys, lanes.queries + 2 * first, p_.D, scores_[0], [&]() TTS_TARGET_AMX {
        if (i > begin) return;
        values.step();
        ahead_.ask(3);
      });
      values.finish();
      if (!values.all_finite()) return false;
      if (view.tokens == 0) continue;
      weigh_lanes(lanes, first, view, scores_[0], weights_[0]);
      sum_eight(weights_[0], values_, view.tokens, p_.D, lanes.sums + first * key_stride(), ahead_);
    }
    return true;
  }

  // Tiles over the keys of a block, where they lie if that can be done with few; else the keys are copied. Returns their number.
  TTS_TARGET_AVX512_BF16 int64_t find_keys(const Block& block, KeyTile* keys) {
    const Runs& runs = block.runs;
    int64_t num_keys = 0, in_place = 0, at = 0;
    for (int64_t i = 0; i < runs.size; ++i) in_place += in_blocks(runs.run[i].tokens, kTileRows);
    if (p_.D % kTileDepth == 0 && p_.S >= kTileRows && in_place <= 2 * in_blocks(block.tokens, kTileRows)) {
      for (int64_t i = 0; i < runs.size; ++i)
        for (int64_t done = 0; done < runs.run[i].tokens; done += kTileRows, ++num_keys) {
          const int64_t count = std::min(kTileRows, runs.run[i].tokens - done), slot = runs.run[i].slot + done;
          const int64_t skipped = std::max<int64_t>(0, slot + kTileRows - p_.S);
          keys[num_keys] = {runs.run[i].key + (done - skipped) * runs.key_stride, runs.key_stride, skipped, at, count};
          at += count;
        }
      return num_keys;
    }
    copy_keys(keys_of(runs).at, block.tokens, p_.D, keys_, key_stride(), ahead_);
    for (; at < block.tokens; at += kTileRows, ++num_keys)
      keys[num_keys] = {keys_ + at * key_stride(), key_stride(), 0, at, std::min(kTileRows, block.tokens - at)};
    return num_keys;
  }

  // The tiles of the calling thread are full ones, as where a task begins and ends, or those that eight lanes take.
  TTS_TARGET_AMX void use_tiles(bool of_eight) {
    if (tiles_of_eight_ == of_eight) return;
    _tile_loadconfig(of_eight ? &kEightTiles : &kFullTiles);
    tiles_of_eight_ = of_eight;
  }

  // Brings the sums of a tile into the order that is asked for.
  void order_sums(const Tile& tile, bool by_lane) {
    if (*tile.by_lane == by_lane) return;
    turn_sums(tile.sums, p_.D, by_lane, turned_);
    *tile.by_lane = by_lane;
  }

  TTS_TARGET_AVX512_BF16 void weigh_lanes(const Tile& tile, int64_t first, const View& view, float* scores, BF16* weights) {
    const __m512i sees = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(view.sees + first)));
    float magnitude;
    const __m512 most = view.hides ? largest_of_eight<true>(scores, view.tokens, sees, &magnitude)
                                   : largest_of_eight<false>(scores, view.tokens, sees, &magnitude);
    float* totals[2] = {tile.total + first, tile.total + kLanes + first};
    raise_maximum_of_eight(tile, first, _mm512_castps512_ps256(_mm512_mul_ps(most, _mm512_set1_ps(factor()))), p_.D);
    const __m512 maximum = _mm512_broadcast_f32x8(_mm256_load_ps(tile.maximum + first));
    const Exponents exponents = magnitude * factor() < Exponents::kMost && !is_large(maximum)
                                    ? Exponents::of(factor(), maximum)
                                    : place_with_care(scores, view.tokens, kEight, factor(), tile.maximum + first, totals[0]);
    __m512 total = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_load_ps(totals[0])), _mm256_load_ps(totals[1]), 1);
    total = weigh_eight(scores, view.tokens, exponents, total, weights, ahead_);
    _mm256_store_ps(totals[0], _mm512_castps512_ps256(total));
    _mm256_store_ps(totals[1], _mm512_extractf32x8_ps(total, 1));
  }

  TTS_TARGET_AMX void weigh_tile(const Tile& tile, const View& view, float* scores, BF16* weights) {
    if (view.tokens == 0) return;
    const __m512i sees = _mm512_load_si512(view.sees);
    const __m512 most =
        view.hides ? largest_scores<true>(scores, view.tokens, sees) : largest_scores<false>(scores, view.tokens, sees);
    raise_maximum(tile, _mm512_mul_ps(most, _mm512_set1_ps(factor())), p_.D);
    const __m512 maximum = _mm512_load_ps(tile.maximum);
    const float bound = (static_cast<float>(p_.D) * *tile.largest * largest_key_ + FLT_MIN) * factor();  // of scores
    const bool is_bounded = !is_large(maximum) && (bound < Exponents::kMost || !has_nan(scores, view.tokens));
    const Exponents exponents = is_bounded ? Exponents::of(factor(), maximum)
                                           : place_with_care(scores, view.tokens, kLanes, factor(), tile.maximum, tile.total);
    weigh(tile, scores, view.tokens, exponents, weights, products_, ahead_);
  }

  TTS_TARGET_AVX512_BF16 void end(int64_t i) {
    const Tile t = tile(i);
    const __m512 total = _mm512_add_ps(_mm512_load_ps(t.total), _mm512_load_ps(t.total + kLanes));
    const __mmask16 is_empty = _mm512_cmp_ps_mask(total, _mm512_setzero_ps(), _CMP_EQ_OQ);
    alignas(64) float totals[kLanes], inverses[kLanes];
    _mm512_store_ps(totals, total);
    _mm512_store_ps(inverses,
                    _mm512_mask_div_ps(_mm512_setzero_ps(), static_cast<__mmask16>(~is_empty), _mm512_set1_ps(1), total));
    BF16* rows[kLanes];
    for (int64_t lane = 0, head; lane < kLanes; ++lane) {
      const int64_t query = query_of(i, lane, &head), at = query * p_.H + g_ * group() + head;
      rows[lane] = query < 0 ? nullptr : static_cast<BF16*>(p_.out) + at * p_.D;
      if (query >= 0) p_.lse[at] = totals[lane] == 0 ? -INFINITY : (t.maximum[lane] + std::log2(totals[lane])) * kLn2;
    }
    order_sums(t, true);
    const __m512i in_turn = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // what lies first and second, four elements at a time
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if (rows[lane] == nullptr) continue;
      const __m512 inverse = _mm512_set1_ps(inverses[lane]);
      const float* sums = t.sums + lane * key_stride();
      for (int64_t d = 0; d < p_.D; d += 32) {
        const __m512bh out = _mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_load_ps(sums + d + 16), inverse),
                                                 _mm512_mul_ps(_mm512_load_ps(sums + d), inverse));
        const __m512i row = _mm512_permutexvar_epi64(in_turn, reinterpret_cast<const __m512i&>(out));
        _mm512_mask_storeu_epi16(rows[lane] + d, p_.D - d >= 32 ? ~0u : (1u << (p_.D - d)) - 1, row);
      }
    }
  }

  const Attend& p_;
  const int64_t lanes_, q0_, q1_, g_;  // lanes_: of a query
  char* const memory_;
  Blocks blocks_;
  // Of a block that is laid out; eight lanes take values, weights and scores in other orders.
  BF16 *keys_, *values_;  // [kBlockTokens][D in chunks], [D][kBlockTokens]
  BF16* weights_[2];      // [kBlockTokens / 2][16][2] of a tile and of the following one
  float* scores_[2];      // [kBlockTokens][16]
  OddValue* odd_;         // [num_odd_] of the block at hand
  float* turned_;         // [16][D in chunks] while sums are turned
  int64_t num_odd_ = 0;
  bool tiles_of_eight_ = false;
  float largest_key_ = 0;  // magnitude, of the block at hand
  Products products_;
  Ahead ahead_;
};

// Lanes of a query: its heads, or the next power of two, so that none lies in two tiles. The first is better for what many
// queries read together, the other for what each reads alone.
int64_t lanes_per_query(const Segmenter& s, int64_t group) {
  int64_t padded = 1;
  while (padded < std::min<int64_t>(group, kLanes)) padded *= 2;
  if (group > kLanes) padded = round_up(group, kLanes);
  const auto work = [&](int64_t lanes) {
    int64_t sum = 0;
    for (const Segment& x : s.segments) sum += x.tokens * (in_blocks(x.q1 * lanes, kLanes) - x.q0 * lanes / kLanes);
    return sum;
  };
  return work(group) < work(padded) ? group : padded;
}

template <class Products>
void run(const Attend& p) {
  Segmenter& segmenter = thread_owned<Segmenter>();
  segmenter.run(p);
  const int64_t lanes = lanes_per_query(segmenter, p.H / p.G), all_tiles = in_blocks(p.N * lanes, kLanes);
  const int threads = segmenter.work * p.H * p.D * 2 > kParallelWork ? max_threads() : 1;
  const int64_t tiles = std::clamp(in_blocks(all_tiles * p.G, threads), kMinTiles, kMaxTiles);
  const int64_t queries = std::max<int64_t>(1, tiles * kLanes / lanes), blocks = in_blocks(p.N, queries);
  const int64_t bytes = round_up(Task<Products>::bytes(p, std::max(tiles, in_blocks(lanes, kLanes))), 64);
  char* memory = static_cast<char*>(thread_owned<Scratch>().take(threads * bytes));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    [[maybe_unused]] const typename Products::Session session;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < blocks * p.G; ++task) {
      const int64_t q0 = task / p.G * queries;
      Task<Products>(p, segmenter, lanes, q0, std::min(p.N, q0 + queries), task % p.G, memory + thread_index() * bytes).run();
    }
  }
}

}  // namespace

void attend_in_bf16(const Attend& p) {
  if (has_bf16_tiles())
    run<TileStream>(p);
  else
    run<DotStream>(p);
}

}  // namespace tts

#else

namespace tts {
void attend_in_bf16(const Attend& p) { attend_in_float32(p, TTS_BF16); }
}  // namespace tts

#endif
