// copy_tails on the GPU: caches[c][destinations[n], :, :counts[n]] = caches[c][sources[n], :, :counts[n]], all caches in one
// launch.
//
// One block of threads per (copy, cache): it reads and writes counts[n]*G*D elements, 16 bytes a thread where all strides allow
// it. Invariant: destinations differ and none is a source, so blocks write what no other reads or writes.
#include <algorithm>

#include "common/check.h"
#include "cuda/launch.h"

namespace tts {
namespace {

constexpr int kCaches = 448;  // addresses that fit the parameters of a launch

struct Caches {
  char* at[kCaches];
};

// Strides and sizes in bytes; rows of `run` bytes lie `head` and `slot` apart.
struct Layout {
  int64_t num_heads, run, page, head, slot;
};

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(Caches caches, Layout layout, const int32_t* sources, const int32_t* destinations, const int32_t* counts) {
  const int64_t n = blockIdx.x;
  char* cache = caches.at[blockIdx.y];
  const char* source = cache + sources[n] * layout.page;
  char* destination = cache + destinations[n] * layout.page;
  const int64_t units = layout.run / static_cast<int64_t>(sizeof(Unit)), all = counts[n] * layout.num_heads * units;
  for (int64_t i = threadIdx.x; i < all; i += kThreads) {
    const int64_t row = i / units, at = row / layout.num_heads * layout.slot + row % layout.num_heads * layout.head;
    const int64_t offset = at + i % units * static_cast<int64_t>(sizeof(Unit));
    *reinterpret_cast<Unit*>(destination + offset) = *reinterpret_cast<const Unit*>(source + offset);
  }
}

struct alignas(16) Sixteen {
  uint32_t words[4];
};

}  // namespace
}  // namespace tts

int tts_cuda_copy_tails(int dtype, int64_t N, int64_t C, int64_t G, int64_t D, int64_t P, int64_t S, const int32_t* sources,
                        const int32_t* destinations, const int32_t* counts, void* const* caches, int64_t caches_page,
                        int64_t caches_head, int64_t caches_slot, void* stream) {
  using namespace tts;
  return guarded([&] {
    check_range("copy_tails: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_range("copy_tails: N", N, 0, INT32_MAX);
    check_sizes("copy_tails: caches", {P, G, S, D});
    check_sizes("copy_tails: copies", {N, C, G, S, D});
    const int64_t size = dtype == TTS_F32 ? 4 : 2;
    const Layout layout{G, D * size, caches_page * size, caches_head * size, caches_slot * size};
    bool is_aligned = (layout.run | layout.page | layout.head | layout.slot) % 16 == 0;
    for (int64_t c = 0; c < C; ++c) is_aligned = is_aligned && reinterpret_cast<uintptr_t>(caches[c]) % 16 == 0;
    auto* const kernel = is_aligned ? copy_kernel<Sixteen> : size == 4 ? copy_kernel<uint32_t> : copy_kernel<uint16_t>;
    for (int64_t first = 0; first < C; first += kCaches) {
      const int64_t count = std::min<int64_t>(kCaches, C - first);
      Caches chunk;
      for (int64_t c = 0; c < count; ++c) chunk.at[c] = static_cast<char*>(caches[first + c]);
      const dim3 grid(static_cast<unsigned>(N), static_cast<unsigned>(count));
      launch(kernel, grid, stream, chunk, layout, sources, destinations, counts);
    }
  });
}
