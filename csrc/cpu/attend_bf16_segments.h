// The schedule of attend in bfloat16: which tokens are read together, in chunks that begin at multiples of 32 of the position in
// the context. Of attend_bf16.cpp alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/tiles.h"
#include "cpu/attend.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

constexpr int64_t kChunk = kTileDepth;  // tokens summed in one step: 32

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

}  // namespace
}  // namespace tts

#endif
