// append: keys|values[page, g, offset, :] = k|v[i, g, :] for slots[i] = page * S + offset.
//
// A task copies one token: it reads 2*G*D and writes 2*G*D elements, G + G runs of D. Invariant: slots differ, so tasks write
// disjoint runs.
#include <cstring>

#include "common/check.h"
#include "common/simd.h"

namespace tts {
namespace {

constexpr int64_t kParallelBytes = 1 << 20;  // one thread copies this in about 100 us

}  // namespace
}  // namespace tts

int tts_append(int dtype, int64_t N, int64_t G, int64_t D, int64_t P, int64_t S, const void* k, int64_t k_token, int64_t k_head,
               const void* v, int64_t v_token, int64_t v_head, void* keys, int64_t keys_page, int64_t keys_head,
               int64_t keys_slot, void* values, int64_t values_page, int64_t values_head, int64_t values_slot,
               const int64_t* slots) {
  using namespace tts;
  return guarded([&] {
    check_range("append: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("append: k", {N, G, D});
    check_sizes("append: keys", {P, G, S, D});
    check_values("append: values of slots", slots, N, 0, P * S);
    const int64_t size = element_size(dtype), run = D * size;
    const auto copy_token = [&](int64_t i, const void* from, int64_t token, int64_t head, void* pages, int64_t to_page,
                                int64_t to_head, int64_t to_slot) {
      const char* source = static_cast<const char*>(from) + i * token * size;
      char* to = static_cast<char*>(pages) + (slots[i] / S * to_page + slots[i] % S * to_slot) * size;
      for (int64_t g = 0; g < G; ++g) std::memcpy(to + g * to_head * size, source + g * head * size, static_cast<size_t>(run));
    };
#pragma omp parallel for if (N * G * run > kParallelBytes)
    for (int64_t i = 0; i < N; ++i) {
      copy_token(i, k, k_token, k_head, keys, keys_page, keys_head, keys_slot);
      copy_token(i, v, v_token, v_head, values, values_page, values_head, values_slot);
    }
  });
}
