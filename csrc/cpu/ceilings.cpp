// ceilings: what the machine can do, measured, to hold the kernels against.
//
// Every thread of the OpenMP runtime works on its own memory or registers; all start a round together, and the round lasts until
// the slowest has finished. Rounds take a few milliseconds and the best one counts: other processes only make a round slower.
#include <algorithm>
#include <cstring>
#include <ctime>

#include "common/check.h"
#include "common/isa.h"
#include "common/memory.h"
#include "common/simd.h"
#include "common/sizes.h"
#include "common/threads.h"
#include "common/tiles.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#endif

namespace tts {
namespace {

constexpr int64_t kRoundBytes = int64_t{32} << 20;  // of a thread, or all it has: about 2 ms
constexpr int64_t kRoundWork = 100000;              // iterations of a compute probe in a round: .5 to 2 ms

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The best work per second over the rounds of `seconds`: round(thread, n) is one thread's share of round n, `work` that of all.
template <class Round>
double best_rate(double seconds, double work, const Round& round) {
  double best = 0;
  const double end = now() + seconds;
#pragma omp parallel
  {
    bool is_last = false;
    for (int64_t n = 0; !is_last; ++n) {
#pragma omp barrier
      const double begin = now();
      round(thread_index(), n);
#pragma omp barrier
#pragma omp single copyprivate(is_last)
      {
        best = std::max(best, work / (now() - begin));
        is_last = now() > end;
      }
    }
  }
  return best;
}

// To the compiler, someone reads `result`: what leads to it is computed.
template <class T>
TTS_INLINE void keep(const T& result) {
  __asm__ volatile("" : : "m"(result));
}

// ---- memory

// Zeroed memory, each thread's part written first by that thread.
class Buffer {
 public:
  explicit Buffer(int64_t bytes_per_thread) : part_(bytes_per_thread), memory_(allocate(part_ * max_threads())) {
#pragma omp parallel
    std::memset(part(thread_index()), 0, static_cast<size_t>(part_));
  }

  char* part(int thread) const { return static_cast<char*>(memory_.get()) + thread * part_; }

 private:
  int64_t part_;
  Memory memory_;
};

// Bytes of the data cache of `level` (2 or 3), `unknown` where the system does not say.
int64_t cache_bytes(int level, int64_t unknown) {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const int64_t bytes = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : unknown;
#else
  return level > 0 ? unknown : 0;
#endif
}

// At least 512 MB and four times the last cache for all threads together.
int64_t dram_bytes_per_thread() {
  return round_up(std::max<int64_t>(int64_t{512} << 20, 4 * cache_bytes(3, 0)) / max_threads(), kHugePage);
}

// Reads eight runs at once: one run alone leaves the prefetcher idle at every 4 KB, and reached three quarters of this.
constexpr int kStreams = 8;
constexpr int64_t kLine = 64, kAhead = 24 * kLine;

TTS_CLONES void read_bytes(const char* from, int64_t bytes) {
  const int64_t run = bytes / kStreams;
  U32x16 seen[kStreams] = {};
  for (int64_t i = 0; i < run; i += kLine)
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      __builtin_prefetch(from + s * run + i + kAhead);
      seen[s] |= bit_cast<U32x16>(load<kLanes>(reinterpret_cast<const float*>(from + s * run + i)));
    }
  keep(seen);
}

// Goes through `bytes_per_thread` in rounds; share(begin of a round's part, its bytes) is a thread's part of one.
template <class Share>
double memory_rate(double seconds, int64_t bytes_per_thread, double bytes_per_byte, const Buffer& buffer, const Share& share) {
  const int64_t size = std::min(kRoundBytes, bytes_per_thread), rounds = bytes_per_thread / size;
  return best_rate(seconds, bytes_per_byte * static_cast<double>(size) * max_threads(),
                   [&](int thread, int64_t n) { share(buffer.part(thread) + n % rounds * size, size); });
}

double read_rate(double seconds, int64_t bytes_per_thread) {
  const Buffer buffer(bytes_per_thread);
  return memory_rate(seconds, bytes_per_thread, 1, buffer, read_bytes);
}

double dram_read(double seconds) { return read_rate(seconds, dram_bytes_per_thread()); }

// Three times a core's second-level cache: from the third level, or from the second where that is the last.
double cache_read(double seconds) { return read_rate(seconds, round_up(3 * cache_bytes(2, int64_t{1} << 20), kHugePage)); }

// Past the caches where the machine can: a store into a cache would first read the line.
void copy_bytes(char* to, const char* from, int64_t bytes) {
#if defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += kLine) {
    __builtin_prefetch(from + i + kAhead);
    for (int64_t j = i; j < i + kLine; j += sizeof(__m128i))
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + j), _mm_load_si128(reinterpret_cast<const __m128i*>(from + j)));
  }
  _mm_sfence();
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

double dram_copy(double seconds) {
  const int64_t half = dram_bytes_per_thread() / 2;
  const Buffer buffer(2 * half);
  return memory_rate(seconds, half, 2, buffer, [half](char* from, int64_t bytes) { copy_bytes(from + half, from, bytes); });
}

// ---- arithmetic

// Twelve sums hide the latency of a multiply-add on two ports, and leave room for the operands in sixteen registers. Unrolled,
// they are registers; as an array they would be memory.
constexpr int kSums = 12;

// `flops` is what one iteration does.
template <int W>
TTS_INLINE void multiply_add_for(int64_t iterations, double* flops) {
  using Float = typename Vector<W>::Float;
  Float sum[kSums], scale = Float{} + 0.5f, shift = Float{} + 1.0f;
  for (int i = 0; i < kSums; ++i) sum[i] = Float{} + static_cast<float>(i);
  for (int64_t n = 0; n < iterations; ++n)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sum[i] = sum[i] * scale + shift;
  keep(sum);
  *flops = 2.0 * kSums * W;
}

TTS_PER_WIDTH(multiply_add, (int64_t iterations, double* flops), (iterations, flops))

double f32_fma(double seconds) {
  double flops;
  multiply_add(1, &flops);
  return best_rate(seconds, flops * kRoundWork * max_threads(), [](int, int64_t) {
    double ignored;
    multiply_add(kRoundWork, &ignored);
  });
}

#if defined(TTS_HAS_X86_BF16)

TTS_TARGET_AVX512_BF16 void dot_bf16(int64_t iterations) {
  __m512 sum[kSums];
  const auto one = (__m512bh)_mm512_set1_epi16(0x3F80);
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_setzero_ps();
  for (int64_t n = 0; n < iterations; ++n)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], one, one);
  keep(sum);
}

double bf16_dot(double seconds) {
  if (!has_bf16_dot()) return 0;
  return best_rate(seconds, 2.0 * kSums * 32 * kRoundWork * max_threads(), [](int, int64_t) { dot_bf16(kRoundWork); });
}

// Four sums of [16,16] from two tiles of [16,32] and two of [32,16], the least that keeps the unit busy.
TTS_TARGET_AMX void multiply_tiles(int64_t iterations) {
  const TileSession session;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t n = 0; n < iterations; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

double bf16_tiles(double seconds) {
  if (!has_bf16_tiles()) return 0;
  constexpr int64_t kIterations = kRoundWork / 8;
  return best_rate(seconds, 4.0 * 2 * 16 * 16 * 32 * kIterations * max_threads(),
                   [](int, int64_t) { multiply_tiles(kIterations); });
}

#else

double bf16_dot(double) { return 0; }
double bf16_tiles(double) { return 0; }

#endif

// Values like a softmax's: from a little above -5 up to 0, different in every iteration.
TTS_CLONES void exponentiate(int64_t iterations) {
  F32x16 x[4], sum[4] = {};
  for (int i = 0; i < 4; ++i) x[i] = splat(static_cast<float>(-i - 1));
  for (int64_t n = 0; n < iterations; ++n)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      sum[i] += exp2(x[i]);
      x[i] += 1e-5f;
    }
  keep(sum);
}

double f32_exp2(double seconds) {
  return best_rate(seconds, 4.0 * kLanes * kRoundWork * max_threads(), [](int, int64_t) { exponentiate(kRoundWork); });
}

}  // namespace
}  // namespace tts

int tts_ceiling(int which, double seconds, double* out) {
  using namespace tts;
  return guarded([&] {
    check(seconds > 0, "ceiling: seconds must be > 0, got " + std::to_string(seconds));
    switch (which) {
      case TTS_DRAM_READ: *out = dram_read(seconds); break;
      case TTS_DRAM_COPY: *out = dram_copy(seconds); break;
      case TTS_CACHE_READ: *out = cache_read(seconds); break;
      case TTS_F32_FMA: *out = f32_fma(seconds); break;
      case TTS_BF16_DOT: *out = bf16_dot(seconds); break;
      case TTS_BF16_TILES: *out = bf16_tiles(seconds); break;
      case TTS_F32_EXP2: *out = f32_exp2(seconds); break;
      default: out_of_range("ceiling: which", which, TTS_DRAM_READ, TTS_F32_EXP2 + 1);
    }
  });
}
