// Threads that call every kernel at the same moment, on the same inputs and with outputs of their own, must all get the same
// bits. Built with ThreadSanitizer and without OpenMP, whose barriers it does not know, a race inside the library is a report.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace {

constexpr int kThreads = 4, kRounds = 5;
constexpr int64_t M = 9, N = 70, K = 100, H = 4, G = 2, D = 32, P = 12, S = 4, V = 300, X = 8, kItems = 8, kSpans = 32;

using Bytes = std::vector<char>;

struct Inputs {
  std::vector<float> floats = std::vector<float>(1 << 16);
  std::vector<uint16_t> halves = std::vector<uint16_t>(1 << 16);

  Inputs() {
    for (size_t i = 0; i < floats.size(); ++i) {
      floats[i] = static_cast<float>(i * 2654435761u % 2003) / 1000 - 1;
      uint32_t bits;
      std::memcpy(&bits, &floats[i], sizeof(bits));
      halves[i] = static_cast<uint16_t>(bits >> 16);
    }
  }

  const void* of(int dtype) const { return dtype == TTS_F32 ? static_cast<const void*>(floats.data()) : halves.data(); }
};

void ok(int code) {
  if (code == TTS_OK) return;
  std::fprintf(stderr, "error %d: %s\n", code, tts_last_error());
  std::exit(1);
}

// What a thread computed, all of it.
class Results {
 public:
  template <class T>
  T* take(int64_t count) {
    parts_.emplace_back(static_cast<size_t>(count) * sizeof(T) + 64);
    return reinterpret_cast<T*>(parts_.back().data());
  }
  bool operator==(const Results& other) const { return parts_ == other.parts_; }

 private:
  std::vector<Bytes> parts_;
};

void multiply(const Inputs& in, int dtype, Results& r) {
  const int64_t size = dtype == TTS_F32 ? 4 : 2;
  void* packed = r.take<char>((N + 15) / 16 * ((K + 31) / 32) * 512 * size);
  ok(tts_pack(dtype, N, K, in.of(dtype), K, packed));
  ok(tts_linear(dtype, M, N, K, in.of(dtype), K, packed, nullptr, r.take<char>(M * N * size)));
}

void norm_activate_and_turn(const Inputs& in, int dtype, Results& r) {
  const int64_t size = dtype == TTS_F32 ? 4 : 2;
  ok(tts_rms_norm(dtype, M, K, in.of(dtype), K, in.of(dtype), 1e-6, r.take<char>(M * K * size)));
  ok(tts_silu_and_mul(dtype, M, N, in.of(dtype), 2 * N, r.take<char>(M * N * size)));
  char* heads = r.take<char>(M * H * D * size);
  std::memcpy(heads, in.of(dtype), M * H * D * size);
  ok(tts_rope(dtype, M, H, D, heads, H * D, D, in.of(dtype), D, in.of(dtype), D));
}

// Two rows that share two full pages of a flat table, and the same as nodes of a tree.
void attend(const Inputs& in, int dtype, Results& r) {
  const int64_t size = dtype == TTS_F32 ? 4 : 2, page = G * S * D, slots[] = {9, 14};
  const int32_t table[] = {0, 1, 2, 0, 1, 3}, context[] = {10, 11}, indptr[] = {0, 1, 2}, leaves[] = {1, 2};
  const int32_t parent[X] = {-1, 0, 0}, start[X] = {}, length[X] = {8, 2, 3}, first[X] = {0, 2, 3}, next[P] = {1, -1, -1, -1};
  char *keys = r.take<char>(P * page * size), *values = r.take<char>(P * page * size);
  std::memcpy(keys, in.of(dtype), P * page * size);
  std::memcpy(values, static_cast<const char*>(in.of(dtype)) + 64, P * page * size);
  ok(tts_append(dtype, 2, G, D, P, S, in.of(dtype), G * D, D, in.of(dtype), G * D, D, keys, page, S * D, D, values, page, S * D,
                D, slots));
  for (const bool is_flat : {false, true}) {
    int32_t *items = r.take<int32_t>(kItems * 3), *item_indptr = r.take<int32_t>(kItems + 1);
    int32_t *spans = r.take<int32_t>(kSpans * 3), *needed = r.take<int32_t>(2);
    ok(is_flat ? tts_plan_pages(2, 3, table, 3, context, indptr, S, kItems, kSpans, items, item_indptr, spans, needed)
               : tts_plan(2, X, P, leaves, indptr, parent, start, length, first, next, S, kItems, kSpans, items, item_indptr,
                          spans, needed));
    ok(tts_attend(dtype, 2, H, G, D, P, S, needed[1], needed[0], in.of(dtype), H * D, D, keys, page, S * D, D, values, page,
                  S * D, D, spans, item_indptr, items, 0.2, r.take<char>(2 * H * D * size), r.take<float>(2 * H)));
  }
  void* caches[] = {keys, values};
  const int32_t sources[] = {2}, destinations[] = {7}, counts[] = {2};
  ok(tts_copy_tails(dtype, 1, 2, G, D, P, S, sources, destinations, counts, caches, page, S * D, D));
}

// Two layers over one row with two tokens before it.
void decode(const Inputs& in, int dtype, Results& r) {
  constexpr int64_t L = 2, E = 40, F = 24;
  const int64_t size = dtype == TTS_F32 ? 4 : 2, page = G * S * D, slots[] = {6};
  const int32_t spans[] = {1, 0, 3}, item_indptr[] = {0, 1}, items[] = {0, 1, 1};
  char *keys = r.take<char>(L * P * page * size), *values = r.take<char>(L * P * page * size);
  std::memcpy(keys, in.of(dtype), L * P * page * size);
  std::memcpy(values, in.of(dtype), L * P * page * size);
  const void* any = in.of(dtype);
  const tts_decoder_weights weights = {any, any, nullptr, nullptr, any, any, any, any, any, nullptr, any, nullptr};
  ok(tts_decoder(dtype, L, 1, E, F, H, G, D, D, P, S, 1, 1, any, any, D, any, D, keys, P * page, page, S * D, D, values, P * page,
                 page, S * D, D, slots, spans, item_indptr, items, 0.2, 1e-6, &weights, r.take<char>(E * size)));
}

void select(const Inputs& in, Results& r) {
  const int32_t segments[] = {0, 5, 9}, total[] = {4, 6}, keep[] = {2, 2}, parents[] = {0, 1}, nodes[] = {3, 4};
  const int64_t keys[] = {1, 2};
  float* scores = r.take<float>(M);
  ok(tts_score(TTS_F32, M, K, 2, in.floats.data(), K, in.floats.data() + 7, nullptr, in.floats.data(), 1, TTS_ACTIVATION_SIGMOID,
               scores, r.take<float>(M * 4)));
  for (int rule = TTS_TOP; rule <= TTS_MULTINOMIAL; ++rule)
    ok(tts_prune(M, 2, scores, segments, total, keep, keys, rule, 0.1, 10, r.take<int32_t>(M), r.take<int32_t>(10),
                 r.take<int32_t>(2)));
  int32_t* columns = r.take<int32_t>(6 * X);
  ok(tts_fork(2, X, parents, nodes, columns, columns + X, columns + 2 * X, columns + 3 * X, columns + 4 * X, columns + 5 * X));
}

// The message of an error is the thread's own.
void fail(int32_t node) {
  const std::string expected = "fork: values of parents must be in [0, 0), got " + std::to_string(node);
  const int code = tts_fork(1, 0, &node, &node, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
  if (code == TTS_INVALID_ARGUMENT && tts_last_error() == expected) return;
  std::fprintf(stderr, "another thread's error: %s\n", tts_last_error());
  std::exit(1);
}

void draw(const Inputs& in, Results& r) {
  const int32_t row[] = {0, 0, 1}, top_k[] = {0, 5, 0}, state[3] = {};
  const int64_t key[] = {1, 2, 3}, position[] = {4, 5, 6};
  const float temperature[] = {1, .5f, 0}, top_p[] = {1, .9f, .5f}, min_p[] = {0, 0, .1f};
  const std::vector<int32_t> next_state(V);
  ok(tts_sample(TTS_F32, 2, V, 3, 1, in.floats.data(), row, key, position, temperature, top_k, top_p, min_p, state,
                next_state.data(), 1, r.take<int64_t>(3), r.take<float>(3), r.take<int32_t>(3), r.take<float>(3),
                r.take<float>(3)));
}

}  // namespace

int main() {
  const Inputs inputs;
  std::vector<Results> results(kThreads * kRounds);
  std::atomic<int> waiting{kThreads};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      --waiting;
      while (waiting > 0) std::this_thread::yield();
      for (int round = 0; round < kRounds; ++round) {
        Results& mine = results[static_cast<size_t>(i * kRounds + round)];
        for (const int dtype : {TTS_F32, TTS_F16, TTS_BF16}) {
          multiply(inputs, dtype, mine);
          norm_activate_and_turn(inputs, dtype, mine);
          attend(inputs, dtype, mine);
          decode(inputs, dtype, mine);
        }
        select(inputs, mine);
        draw(inputs, mine);
        fail(i);
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const Results& one : results)
    if (!(one == results[0])) return std::fprintf(stderr, "threads differ\n"), 1;
  return 0;
}
