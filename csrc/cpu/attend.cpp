// attend: checks the problem and hands it to the arithmetic that the dtype and the machine ask for.
#include "cpu/attend.h"

#include <cmath>
#include <vector>

#include "common/check.h"
#include "common/isa.h"
#include "common/threads.h"

namespace tts {
namespace {

void check_spans(const Attend& p) {
  for (int64_t i = 0; i < p.num_spans; ++i) {
    const int32_t* span = p.spans + i * 3;
    check_range("attend: page of spans", span[0], 0, p.P);
    check_range("attend: first slot of spans", span[1], 0, p.S);
    check_range("attend: count of spans", span[2], 0, p.S - span[1] + 1);
  }
}

// Sorted by q0 and nested, nothing inside a causal item: each item lies inside the last one that is still open.
void check_items(const Attend& p) {
  check_indptr("attend: values of item_indptr", p.item_indptr, p.W, p.num_spans);
  auto& open = thread_owned<std::vector<const int32_t*>>();
  open.clear();
  for (int64_t w = 0, last_q0 = 0; w < p.W; ++w) {
    const int32_t* item = p.items + w * 3;
    check_range("attend: q0 of items", item[0], 0, p.N + 1);
    check_range("attend: q1 of items", item[1], item[0], p.N + 1);
    if (item[0] == item[1]) continue;
    check(item[0] >= last_q0,
          "attend: items must be sorted by q0, got " + std::to_string(item[0]) + " after " + std::to_string(last_q0));
    last_q0 = item[0];
    while (!open.empty() && open.back()[1] <= item[0]) open.pop_back();
    check(open.empty() || (item[1] <= open.back()[1] && open.back()[2] == 0),
          "attend: items must be nested and none inside a causal one, item " + std::to_string(w) + " is not");
    open.push_back(item);
  }
}

}  // namespace
}  // namespace tts

int tts_attend(int dtype, int64_t N, int64_t H, int64_t G, int64_t D, int64_t P, int64_t S, int64_t num_spans, int64_t W,
               const void* q, int64_t q_token, int64_t q_head, const void* keys, int64_t keys_page, int64_t keys_head,
               int64_t keys_slot, const void* values, int64_t values_page, int64_t values_head, int64_t values_slot,
               const int32_t* spans, const int32_t* item_indptr, const int32_t* items, double scale, void* out, float* lse) {
  using namespace tts;
  return guarded([&] {
    check_range("attend: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("attend: q", {N, H, D});
    check_sizes("attend: keys", {P, G, S, D});
    check(std::isfinite(scale), "attend: scale must be finite, got " + std::to_string(scale));
    check(D % 8 == 0 && D <= kMaxHeadDim, "attend: head dim must be a multiple of 8 up to 256, got " + std::to_string(D));
    if (N == 0 || H == 0) return;
    check(G > 0 && H % G == 0, "attend: H must be a multiple of G, got " + std::to_string(H) + " and " + std::to_string(G));
    const Pages key_pages{keys, keys_page, keys_head, keys_slot}, value_pages{values, values_page, values_head, values_slot};
    const Attend p{N,
                   H,
                   G,
                   D,
                   P,
                   S,
                   num_spans,
                   W,
                   q,
                   q_token,
                   q_head,
                   key_pages,
                   value_pages,
                   spans,
                   item_indptr,
                   items,
                   static_cast<float>(scale),
                   out,
                   lse};
    check_spans(p);
    check_items(p);
    if (dtype == TTS_BF16 && has_bf16_dot())
      attend_in_bf16(p);
    else
      attend_in_float32(p, dtype);
  });
}
