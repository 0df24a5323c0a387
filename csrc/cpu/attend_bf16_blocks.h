// The blocks of tokens that the queries of a task read, one after the other. Of attend_bf16.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/attend.h"
#include "cpu/attend_bf16_layout.h"
#include "cpu/attend_bf16_segments.h"

#if TTS_HAS_X86_BF16

namespace tts {
namespace {

// Up to kBlockTokens tokens of a segment, from its token `done` on, and the lanes that read them.
struct Block {
  const Segment* segment = nullptr;
  int64_t done = 0, tokens = 0, first_lane = 0, last_lane = 0;
  Runs runs;
};

// Cuts the segments that concern queries q0..q1-1 into blocks; g is the KV head, a query has `lanes` lanes.
class Blocks {
 public:
  Blocks(const Attend& p, const Segmenter& s, int64_t lanes, int64_t q0, int64_t q1, int64_t g)
      : p_(p), s_(s), lanes_(lanes), q0_(q0), q1_(q1), g_(g) {}

  // The next block of the task; without a segment behind the last.
  void advance(Block* block) {
    while (left_ == 0) {
      if (next_segment_ == s_.segments.size()) {
        block->segment = nullptr;
        block->runs.size = 0;
        return;
      }
      open(s_.segments[next_segment_++]);
    }
    const Segment& segment = s_.segments[next_segment_ - 1];
    block->segment = &segment;
    block->first_lane = (std::max<int64_t>(segment.q0, q0_) - q0_) * lanes_;
    block->last_lane = (std::min<int64_t>(segment.q1, q1_) - q0_) * lanes_;
    block->done = done_;
    block->tokens = std::min(kBlockTokens, left_);
    find_runs(block->tokens, &block->runs);
    done_ += block->tokens;
    left_ -= block->tokens;
  }

 private:
  void open(const Segment& segment) {
    const bool concerns = segment.q0 < q1_ && q0_ < segment.q1;
    const int64_t hidden = segment.is_causal ? std::max<int64_t>(0, segment.q1 - q1_) : 0;  // from all queries of the task
    left_ = concerns ? std::max<int64_t>(0, segment.tokens - hidden) : 0;
    done_ = offset_ = 0;
    span_ = segment.first_span;
  }

  void find_runs(int64_t tokens, Runs* runs) {
    const auto* keys = static_cast<const BF16*>(p_.keys.data) + g_ * p_.keys.head;
    const auto* values = static_cast<const BF16*>(p_.values.data) + g_ * p_.values.head;
    runs->size = 0;
    runs->key_stride = p_.keys.slot;
    runs->value_stride = p_.values.slot;
    for (int64_t left = tokens; left > 0;) {
      const Span& span = s_.spans[span_];
      const int64_t count = std::min(left, span.count - offset_), slot = span.first + offset_;
      runs->run[runs->size++] = {keys + span.page * p_.keys.page + slot * p_.keys.slot,
                                 values + span.page * p_.values.page + slot * p_.values.slot, count, slot};
      left -= count;
      if ((offset_ += count) == span.count) {
        ++span_;
        offset_ = 0;
      }
    }
  }

  const Attend& p_;
  const Segmenter& s_;
  const int64_t lanes_, q0_, q1_, g_;
  size_t next_segment_ = 0, span_ = 0;        // the segment behind the open one, and where the next block begins in that
  int64_t offset_ = 0, done_ = 0, left_ = 0;  // in the span; tokens of the open segment
};

}  // namespace
}  // namespace tts

#endif
