// attend in float32: out[i,h] = softmax(scale * q[i,h] @ K) @ V over the tokens of the work items that cover query i.
//
// A task is a block of consecutive queries x one KV head: 16 to 128 query heads, which share every read of K and V. It reads
// 2*D elements per token of the items that overlap the block, and q and out once. Two passes over the context: all scores
// (a lane is a token, the sum runs over d in order), then per query head the maximum, exp2 and the sum, then the values (a lane
// is a d). Invariant: what a query accumulates depends on the position of a token in its own context and on nothing else:
// scores lane by lane, the sum of weights in 16 lanes by position mod 16, values in 4 sums by position mod 4. So its bits do
// not depend on how items and spans cut the context, on the other queries or on the thread count.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "common/simd.h"
#include "common/sizes.h"
#include "common/threads.h"
#include "cpu/attend.h"
#include "cpu/attend_float32_products.h"

namespace tts {
namespace {

constexpr int64_t kMinBlockHeads = 16, kMaxBlockHeads = 128;  // query heads per task ...
constexpr int64_t kBlockScores = 1 << 18;                     // ... and their scores, at most 1 MB where one query allows it
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kMinSharers = 8;          // rows that must share values before a copy of them pays
constexpr int64_t kParallelWork = 1 << 17;  // multiply-adds below which a second thread costs more than it saves

// Which items a block of queries reads, and the room that its contexts need.
struct Schedule {
  int64_t block_queries = 0, num_blocks = 0, context_capacity = 0, work = 0;
  std::vector<int64_t> block_indptr;  // into block_items, in the order of the call
  std::vector<int32_t> block_items;
  std::vector<int64_t> item_tokens, context;
};

void count_tokens(const Attend& p, Schedule& s) {
  s.item_tokens.assign(static_cast<size_t>(p.W), 0);
  for (int64_t w = 0; w < p.W; ++w)
    for (int64_t i = p.item_indptr[w]; i < p.item_indptr[w + 1]; ++i) s.item_tokens[static_cast<size_t>(w)] += p.spans[i * 3 + 2];
}

// The longest context, from the difference of the contexts of neighbours: O(N + W).
void measure_contexts(const Attend& p, Schedule& s) {
  s.context.assign(static_cast<size_t>(p.N) + 1, 0);
  s.work = 0;
  for (int64_t w = 0; w < p.W; ++w) {
    const int32_t* item = p.items + w * 3;
    s.context[static_cast<size_t>(item[0])] += s.item_tokens[static_cast<size_t>(w)];
    s.context[static_cast<size_t>(item[1])] -= s.item_tokens[static_cast<size_t>(w)];
    s.work += (item[1] - item[0]) * s.item_tokens[static_cast<size_t>(w)] * p.H * p.D * 2;
  }
  int64_t running = 0, longest = 0;
  for (int64_t i = 0; i < p.N; ++i) longest = std::max(longest, running += s.context[static_cast<size_t>(i)]);
  s.context_capacity = round_up(longest + kTileTokens, kLanes);
}

void assign_items(const Attend& p, Schedule& s) {
  const int64_t group = p.H / p.G;
  const int64_t share = p.N * p.H / (kTasksPerThread * max_threads());
  const int64_t heads = std::min(std::clamp(share, kMinBlockHeads, kMaxBlockHeads), kBlockScores / s.context_capacity);
  s.block_queries = std::max<int64_t>(1, heads / group);
  s.num_blocks = (p.N + s.block_queries - 1) / s.block_queries;
  s.block_indptr.assign(static_cast<size_t>(s.num_blocks) + 1, 0);
  const auto for_each_block = [&](auto&& visit) {
    for (int64_t w = 0; w < p.W; ++w)
      if (p.items[w * 3] < p.items[w * 3 + 1])
        for (int64_t b = p.items[w * 3] / s.block_queries; b <= (p.items[w * 3 + 1] - 1) / s.block_queries; ++b) visit(b, w);
  };
  for_each_block([&](int64_t b, int64_t) { ++s.block_indptr[static_cast<size_t>(b) + 1]; });
  for (int64_t b = 0; b < s.num_blocks; ++b) s.block_indptr[static_cast<size_t>(b) + 1] += s.block_indptr[static_cast<size_t>(b)];
  s.block_items.resize(static_cast<size_t>(s.block_indptr.back()));
  std::vector<int64_t>& next = s.context;  // no longer needed
  next.assign(s.block_indptr.begin(), s.block_indptr.end());
  for_each_block([&](int64_t b, int64_t w) {
    s.block_items[static_cast<size_t>(next[static_cast<size_t>(b)]++)] = static_cast<int32_t>(w);
  });
}

// Where one KV head's keys or values lie: rows of D elements.
template <class T>
struct Head {
  const T* first;
  int64_t page_stride, slot_stride, dim;

  Head(const Pages& pages, int64_t g, int64_t dim)
      : first(static_cast<const T*>(pages.data) + g * pages.head), page_stride(pages.page), slot_stride(pages.slot), dim(dim) {}

  TTS_INLINE const T* row(int64_t page, int64_t slot) const { return first + page * page_stride + slot * slot_stride; }
};

// The tokens of one work item in order, run by run: the rows of a run are `slot_stride` apart.
template <class T>
class Tokens {
 public:
  struct Run {
    const T* rows;
    int64_t count;
  };

  Tokens(const Attend& p, const Head<T>& head, int64_t item) : head_(head), span_(p.spans + p.item_indptr[item] * 3) {}

  int64_t stride() const { return head_.slot_stride; }

  // The next run, cut to `most` rows; the item must have tokens left.
  TTS_INLINE Run next_run(int64_t most) {
    for (; rest_.count == 0; span_ += 3) rest_ = run_of(span_);
    const Run run{rest_.rows, std::min(rest_.count, most)};
    rest_ = {run.rows + run.count * head_.slot_stride, rest_.count - run.count};
    return run;
  }

  // Asks for the next `count` rows, so that they arrive while others are worked on: pages lie anywhere.
  void prefetch(int64_t count) const {
    Run run = rest_;
    for (const int32_t* span = span_; count > 0; run = run_of(span), span += 3) {
      const int64_t bytes = head_.dim * static_cast<int64_t>(sizeof(T));
      for (int64_t i = 0; i < std::min(run.count, count); ++i)
        for (int64_t byte = 0; byte < bytes; byte += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(run.rows + i * head_.slot_stride) + byte);
      if ((count -= run.count) <= 0) break;
    }
  }

 private:
  TTS_INLINE Run run_of(const int32_t* span) const { return {head_.row(span[0], span[1]), span[2]}; }

  const Head<T>& head_;
  const int32_t* span_;  // the one after the run at hand
  Run rest_{nullptr, 0};
};

// tile[t / 16, d, t % 16] = key t of the next `count` tokens. The lanes behind them are 0 or repeat the last one: nobody reads
// their scores, but what happens to lie there may be subnormal, which is slow.
template <class T>
TTS_CLONES void pack_keys(Tokens<T>& tokens, int64_t count, int64_t dim, float* tile) {
  const T* rows[kTileTokens];
  int64_t filled = 0;
  while (filled < count) {
    const auto run = tokens.next_run(count - filled);
    for (int64_t i = 0; i < run.count; ++i) rows[filled + i] = run.rows + i * tokens.stride();
    filled += run.count;
  }
  for (; filled % kTransposedRows != 0; ++filled) rows[filled] = rows[filled - 1];
  for (int64_t t = 0; t < filled; t += kLanes, tile += dim * kLanes) {
    const int64_t num_rows = std::min<int64_t>(kLanes, filled - t);
    transpose_rows(rows + t, num_rows, dim, tile, kLanes);
    for (int64_t lane = num_rows; lane < kLanes; lane += kTransposedRows)
      for (int64_t d = 0; d < dim; ++d) std::memset(tile + d * kLanes + lane, 0, sizeof(Columns));
  }
}

// tile[t, 0:dim] = value t of the next `count` tokens, rows padded with 0 to whole vectors.
template <class T>
TTS_CLONES void pack_values(Tokens<T>& tokens, int64_t count, int64_t dim, float* tile) {
  while (count > 0) {
    const auto run = tokens.next_run(count);
    for (int64_t i = 0; i < run.count; ++i)
      for (int64_t d = 0; d < dim; d += kLanes, tile += kLanes)
        store(tile, load_some(run.rows + i * tokens.stride() + d, dim - d));
    count -= run.count;
  }
}

// The rows of a block: query heads of one KV head, all of a query, then those of the next one.
template <class T>
TTS_CLONES void load_queries(const T* from, int64_t queries, int64_t group, int64_t q_token, int64_t q_head, int64_t dim,
                             float* to) {
  for (int64_t query = 0; query < queries; ++query)
    for (int64_t head = 0; head < group; ++head, to += dim)
      for (int64_t d = 0; d < dim; ++d) to[d] = load1(from + query * q_token + head * q_head + d);
}

template <class T>
TTS_CLONES void write_row(const float* sums, int64_t padded, int64_t dim, float scale, T* out) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    const F32x16 even = load<kLanes>(sums + d) + load<kLanes>(sums + 2 * padded + d);
    const F32x16 odd = load<kLanes>(sums + padded + d) + load<kLanes>(sums + 3 * padded + d);
    store_some(out + d, (even + odd) * scale, dim - d);
  }
}

// One block of queries against one KV head. Row r is query head r % group of the block's query r / group.
template <class T>
class Task {
 public:
  Task(const Attend& p, const Schedule& s, int64_t block, int64_t g, void* memory)
      : p_(p),
        s_(s),
        block_(static_cast<size_t>(block)),
        g_(g),
        first_query_(block * s.block_queries),
        num_queries_(std::min(s.block_queries, p.N - first_query_)),
        group_(p.H / p.G),
        rows_(num_queries_ * group_),
        keys_(p.keys, g, p.D),
        values_(p.values, g, p.D),
        padded_(round_up(p.D, kLanes)),
        ws_(memory, s.block_queries * group_, p.D, s.context_capacity) {}

  void run() {
    const T* q = static_cast<const T*>(p_.q) + first_query_ * p_.q_token + g_ * group_ * p_.q_head;
    load_queries(q, num_queries_, group_, p_.q_token, p_.q_head, p_.D, ws_.queries);
    std::fill_n(ws_.sums, rows_ * kPhases * padded_, 0.0f);
    for_each_item(keys_, [&](int64_t w, int64_t first, int64_t last, int64_t tokens) { score_item(w, first, last, tokens); });
    for (int64_t row = 0; row < rows_; ++row) normalize_row(row);
    for_each_item(values_, [&](int64_t w, int64_t first, int64_t last, int64_t tokens) { weigh_item(w, first, last, tokens); });
    for (int64_t row = 0; row < rows_; ++row) write_row(sums(row), padded_, p_.D, ws_.inverse[row], out(row));
  }

 private:
  // Visits the items of the block in order with the rows [first, last) and the tokens that they see, and keeps `position` and
  // `visible` of every row. `head` is what the visit reads.
  template <class Visit>
  void for_each_item(const Head<T>& head, Visit&& visit) {
    std::fill_n(ws_.position, rows_, 0);
    const auto end = static_cast<size_t>(s_.block_indptr[block_ + 1]);
    for (auto i = static_cast<size_t>(s_.block_indptr[block_]); i < end; ++i) {
      const int64_t w = s_.block_items[i], tokens = s_.item_tokens[static_cast<size_t>(w)];
      if (i + 1 < end) {
        const int64_t following = s_.block_items[i + 1];
        Tokens<T>(p_, head, following).prefetch(std::min(kTileTokens, s_.item_tokens[static_cast<size_t>(following)]));
      }
      const int32_t* item = p_.items + w * 3;
      const int64_t first = (std::max<int64_t>(item[0], first_query_) - first_query_) * group_;
      const int64_t last = (std::min<int64_t>(item[1], first_query_ + num_queries_) - first_query_) * group_;
      for (int64_t row = first; row < last; ++row) {
        const int64_t hidden = item[2] != 0 ? item[1] - 1 - (first_query_ + row / group_) : 0;
        ws_.visible[row] = std::max<int64_t>(0, tokens - hidden);
      }
      visit(w, first, last, ws_.visible[last - 1]);
      for (int64_t row = first; row < last; ++row) ws_.position[row] += ws_.visible[row];
    }
  }

  void score_item(int64_t w, int64_t first, int64_t last, int64_t num_tokens) {
    Tokens<T> keys(p_, keys_, w);
    for (int64_t done = 0; done < num_tokens; done += kTileTokens) {
      const int64_t tokens = std::min(kTileTokens, num_tokens - done);
      pack_keys(keys, tokens, p_.D, ws_.tile);
      keys.prefetch(std::min(kTileTokens, num_tokens - done - tokens));
      score_block(ws_, first, last, p_.D, s_.context_capacity, done, tokens, p_.scale);
    }
  }

  void weigh_item(int64_t w, int64_t first, int64_t last, int64_t num_tokens) {
    Tokens<T> values(p_, values_, w);
    for (int64_t done = 0, tokens; done < num_tokens; done += tokens) {
      const float* rows = next_values(values, last - first, num_tokens - done, &tokens);
      values.prefetch(std::min(kTileTokens, num_tokens - done - tokens));
      weigh_block(ws_, rows, first, last, padded_, s_.context_capacity, done, tokens);
    }
  }

  // The next values as float32 rows of whole vectors: in place where they are that and too few rows share them to pay for a
  // copy, else packed into the tile.
  const float* next_values(Tokens<T>& values, int64_t sharers, int64_t left, int64_t* tokens) {
    if constexpr (std::is_same<T, float>::value)
      if (sharers < kMinSharers && padded_ == p_.D && values.stride() == p_.D) {
        const auto run = values.next_run(left);
        *tokens = run.count;
        return run.rows;
      }
    *tokens = std::min(kTileTokens, left);
    pack_values(values, *tokens, p_.D, ws_.tile);
    return ws_.tile;
  }

  void normalize_row(int64_t row) {
    const int64_t head = (first_query_ + row / group_) * p_.H + g_ * group_ + row % group_;
    ws_.inverse[row] = 1.0f;
    p_.lse[head] = -INFINITY;
    if (ws_.position[row] > 0)
      p_.lse[head] = softmax_row(ws_.scores + row * s_.context_capacity, ws_.position[row], &ws_.inverse[row]);
  }

  float* sums(int64_t row) const { return ws_.sums + row * kPhases * padded_; }

  T* out(int64_t row) const {
    return static_cast<T*>(p_.out) + ((first_query_ + row / group_) * p_.H + g_ * group_ + row % group_) * p_.D;
  }

  const Attend& p_;
  const Schedule& s_;
  const size_t block_;
  const int64_t g_, first_query_, num_queries_, group_, rows_;
  const Head<T> keys_, values_;
  const int64_t padded_;
  const Workspace ws_;
};

template <class T>
void run_attend(const Attend& p, const Schedule& s) {
  Scratch& scratch = thread_owned<Scratch>();
  const int64_t tasks = s.num_blocks * p.G;
  const int threads = s.work > kParallelWork ? static_cast<int>(std::min<int64_t>(max_threads(), tasks)) : 1;
  const int64_t bytes = Workspace::bytes(s.block_queries * (p.H / p.G), p.D, s.context_capacity);
  char* memory = static_cast<char*>(scratch.take(threads * bytes));
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) Task<T>(p, s, task / p.G, task % p.G, memory + thread_index() * bytes).run();
}

}  // namespace

void attend_in_float32(const Attend& p, int dtype) {
  Schedule& schedule = thread_owned<Schedule>();
  count_tokens(p, schedule);
  measure_contexts(p, schedule);
  assign_items(p, schedule);
  with_dtype(dtype, [&](auto element) { run_attend<decltype(element)>(p, schedule); });
}

}  // namespace tts
