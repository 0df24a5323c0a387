// What the implementations of attend share: the problem, checked by the launcher, and the two that compute it.
#pragma once

#include <cstdint>

namespace tts {

// T[P,G,S,D] with strides in elements and dense D.
struct Pages {
  const void* data;
  int64_t page, head, slot;
};

struct Attend {
  int64_t N, H, G, D, P, S, num_spans, W;
  const void* q;
  int64_t q_token, q_head;
  Pages keys, values;
  const int32_t *spans, *item_indptr, *items;
  float scale;
  void* out;
  float* lse;
};

constexpr int64_t kMaxHeadDim = 256;

// Any dtype, in float32 arithmetic.
void attend_in_float32(const Attend& p, int dtype);

// bfloat16 in products of bfloat16 pairs; only where has_bf16_dot().
void attend_in_bf16(const Attend& p);

}  // namespace tts
