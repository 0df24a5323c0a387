// append: pool[page, layer, k|v, g, offset, :] = k|v[i, g, :] for slots[i] = page * S + offset.
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

int tts_append(int dtype, int64_t N, int64_t G, int64_t D, int64_t P, int64_t L, int64_t S, const void* k, int64_t k_token,
               int64_t k_head, const void* v, int64_t v_token, int64_t v_head, void* pool, const int64_t* slots, int64_t layer) {
  using namespace tts;
  return guarded([&] {
    check_range("append: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("append: k", {N, G, D});
    check_sizes("append: pool", {P, L, 2, G, S, D});
    check_range("append: layer", layer, 0, L);
    check_values("append: values of slots", slots, N, 0, P * S);
    const int64_t size = element_size(dtype), run = D * size, kv_bytes = G * S * run;
    const auto copy_token = [&](int64_t i, const void* from, int64_t token, int64_t head, int64_t kv) {
      char* to = static_cast<char*>(pool) + ((slots[i] / S * L + layer) * 2 + kv) * kv_bytes + slots[i] % S * run;
      for (int64_t g = 0; g < G; ++g)
        std::memcpy(to + g * S * run, static_cast<const char*>(from) + (i * token + g * head) * size, static_cast<size_t>(run));
    };
#pragma omp parallel for if (N * G * run > kParallelBytes)
    for (int64_t i = 0; i < N; ++i) {
      copy_token(i, k, k_token, k_head, 0);
      copy_token(i, v, v_token, v_head, 1);
    }
  });
}
