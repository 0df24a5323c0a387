// append: keys|values[page, g, offset, :] = k|v[i, g, :] for slots[i] = page * S + offset.
//
// A task is 16 tokens: it reads 2*G*D and writes 2*G*D elements for each of them. Neighbours in a page, as a prefill has them,
// are written head by head: their slots are one stretch of memory there. Invariant: slots differ, so tasks write disjoint memory.
#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/simd.h"

namespace tts {
namespace {

constexpr int64_t kTaskTokens = 4;
constexpr int64_t kParallelBytes = 1 << 18;  // one thread copies this in about 20 us
constexpr int64_t kLine = 64;

// The new and the stored tensor of keys or of values, strides in bytes.
struct Stream {
  const char* from;
  int64_t token, head;
  char* pages;
  int64_t to_page, to_head, to_slot;
};

// `count` runs of LINES cache lines and `rest` bytes; LINES 0: `lines` of them.
template <int LINES>
TTS_INLINE void copy_runs(const char* from, int64_t from_stride, char* to, int64_t to_stride, int64_t count, int64_t lines,
                          int64_t rest) {
  const int64_t whole = (LINES > 0 ? LINES : lines) * kLine;
  for (int64_t i = 0; i < count; ++i, from += from_stride, to += to_stride) {
#pragma GCC unroll 8
    for (int64_t at = 0; at < whole; at += kLine) {
      U32x16 line;
      std::memcpy(&line, from + at, kLine);
      std::memcpy(to + at, &line, kLine);
    }
    if (LINES == 0 && rest > 0) std::memcpy(to + whole, from + whole, static_cast<size_t>(rest));
  }
}

// Tokens i..i+count-1 into neighbouring slots of a page. Heads of 64 and 128 bfloat16 have copies of their own.
TTS_CLONES void copy_tokens(const Stream& s, int64_t i, int64_t count, int64_t page, int64_t offset, int64_t G, int64_t run) {
  const int64_t lines = run / kLine, rest = run % kLine;
  for (int64_t g = 0; g < G; ++g) {
    const char* from = s.from + i * s.token + g * s.head;
    char* to = s.pages + page * s.to_page + g * s.to_head + offset * s.to_slot;
    if (run == 2 * kLine)
      copy_runs<2>(from, s.token, to, s.to_slot, count, lines, rest);
    else if (run == 4 * kLine)
      copy_runs<4>(from, s.token, to, s.to_slot, count, lines, rest);
    else
      copy_runs<0>(from, s.token, to, s.to_slot, count, lines, rest);
  }
}

// Fetches the slot of a later token: stores wait for their lines in order, loads for ownership do not.
void fetch_slot(const Stream& s, int64_t page, int64_t offset, int64_t G, int64_t run) {
  for (int64_t g = 0; g < G; ++g)
    for (int64_t at = 0; at < run; at += kLine)
      __builtin_prefetch(s.pages + page * s.to_page + g * s.to_head + offset * s.to_slot + at, 1);
}

// How many tokens from i on, before `end`, go to the slots behind that of token i in the same page.
int64_t neighbours(const int64_t* slots, int64_t i, int64_t end, int64_t S) {
  const int64_t most = std::min(end - i, S - slots[i] % S);
  int64_t count = 1;
  while (count < most && slots[i + count] == slots[i] + count) ++count;
  return count;
}

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
    check_values("append: values of slots", slots, N, -1, P * S);
    const int64_t size = element_size(dtype), run = D * size, tasks = (N + kTaskTokens - 1) / kTaskTokens;
    const auto stream = [&](const void* from, int64_t token, int64_t head, void* pages, int64_t page, int64_t to_head,
                            int64_t slot) {
      return Stream{static_cast<const char*>(from),
                    token * size,
                    head * size,
                    static_cast<char*>(pages),
                    page * size,
                    to_head * size,
                    slot * size};
    };
    const Stream streams[] = {stream(k, k_token, k_head, keys, keys_page, keys_head, keys_slot),
                              stream(v, v_token, v_head, values, values_page, values_head, values_slot)};
#pragma omp parallel for schedule(static) if (N * G * run > kParallelBytes)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t end = std::min(N, (task + 1) * kTaskTokens);
      for (int64_t i = end; i < std::min(N, end + kTaskTokens); ++i)
        for (const Stream& s : streams)
          if (slots[i] >= 0) fetch_slot(s, slots[i] / S, slots[i] % S, G, run);
      for (int64_t i = task * kTaskTokens, count; i < end; i += count) {
        count = slots[i] >= 0 ? neighbours(slots, i, end, S) : 1;
        if (slots[i] < 0) continue;  // fills up a batch
        for (const Stream& s : streams) copy_tokens(s, i, count, slots[i] / S, slots[i] % S, G, run);
      }
    }
  });
}
