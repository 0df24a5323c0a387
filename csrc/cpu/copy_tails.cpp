// copy_tails: caches[c][destinations[n], :, :counts[n]] = caches[c][sources[n], :, :counts[n]], for all caches in one launch.
//
// A task is one copy in one cache: it reads and writes counts[n]*G*D elements, in one run where the heads of a slot follow each
// other and the slots too (NHD), in G runs where the slots of a head do (HND), else in runs of D. Invariant: destinations differ
// and none is a source, so tasks write what no other reads or writes.
#include <cstring>

#include "common/check.h"
#include "common/simd.h"

namespace tts {
namespace {

constexpr int64_t kParallelBytes = 1 << 20;  // one thread copies this in about 100 us

// A page of T[P,G,S,D], in bytes.
struct Page {
  int64_t num_heads, run, head, slot;

  // The first `count` slots of all heads.
  void copy(char* to, const char* from, int64_t count) const {
    if (head == run && slot == num_heads * run) return copy_run(to, from, count * slot);
    if (slot == run) {
      for (int64_t g = 0; g < num_heads; ++g) copy_run(to + g * head, from + g * head, count * run);
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t g = 0; g < num_heads; ++g) copy_run(to + i * slot + g * head, from + i * slot + g * head, run);
  }

 private:
  static void copy_run(char* to, const char* from, int64_t bytes) { std::memcpy(to, from, static_cast<size_t>(bytes)); }
};

}  // namespace
}  // namespace tts

int tts_copy_tails(int dtype, int64_t N, int64_t C, int64_t G, int64_t D, int64_t P, int64_t S, const int32_t* sources,
                   const int32_t* destinations, const int32_t* counts, void* const* caches, int64_t caches_page,
                   int64_t caches_head, int64_t caches_slot) {
  using namespace tts;
  return guarded([&] {
    check_range("copy_tails: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("copy_tails: caches", {P, G, S, D});
    check_sizes("copy_tails: copies", {N, C, G, S, D});
    check_values("copy_tails: values of sources", sources, N, 0, P);
    check_values("copy_tails: values of destinations", destinations, N, 0, P);
    check_values("copy_tails: values of counts", counts, N, 0, S + 1);
    if (G * D == 0) return;
    const int64_t size = element_size(dtype), page_stride = caches_page * size;
    const Page page{G, D * size, caches_head * size, caches_slot * size};
#pragma omp parallel for collapse(2) if (N * C * G * S * page.run > kParallelBytes)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t n = 0; n < N; ++n) {
        char* cache = static_cast<char*>(caches[c]);
        page.copy(cache + destinations[n] * page_stride, cache + sources[n] * page_stride, counts[n]);
      }
  });
}
