// prune: how many children each row of a segment gets, for many segments at once.
//
// A task is one segment of n rows: it reads n scores, sorts n 64-bit keys (score descending, then row ascending) and writes n
// widths. Invariant: rows whose score is not finite have no key, so they never enter; the order of all sums is that of the ranks,
// the arithmetic double, as in the reference. The fork plan is then written in row order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/check.h"
#include "common/philox.h"
#include "common/threads.h"

namespace tts {
namespace {

constexpr int64_t kParallelRows = 1 << 11;  // rows below which a second thread costs more than it saves
constexpr int64_t kRadixKeys = 128;         // keys from which on digits are faster than comparisons

// Ascending keys are descending scores, ties by ascending row.
uint64_t rank_key(float score, int64_t row) {
  uint32_t bits;
  const float value = score + 0.0f;  // -0 ties with +0
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t descending = bits & 0x80000000u ? bits : ~bits & 0x7FFFFFFFu;
  return uint64_t{descending} << 32 | static_cast<uint32_t>(row);
}

// Sorts ascending by the upper half of the keys; the order of the lower halves, the rows, is kept. Digit by digit of 8 bits, so
// without the mispredicted branches of comparisons, which win on few keys only.
void sort_keys(uint64_t* keys, uint64_t* spare, int64_t count) {
  if (count < kRadixKeys) {
    std::sort(keys, keys + count);
    return;
  }
  for (int shift = 32; shift < 64; shift += 8) {
    int64_t next[257] = {};
    for (int64_t i = 0; i < count; ++i) ++next[(keys[i] >> shift & 255) + 1];
    for (int digit = 0; digit < 256; ++digit) next[digit + 1] += next[digit];
    for (int64_t i = 0; i < count; ++i) spare[next[keys[i] >> shift & 255]++] = keys[i];
    std::swap(keys, spare);  // four passes end where they began
  }
}

// One segment. Arrays are by rank, `count` of them.
struct Ranked {
  const float* scores;  // by row
  int32_t* widths;      // by row
  const uint64_t* keys;
  double* weights;
  int64_t count;

  int64_t row(int64_t rank) const { return static_cast<uint32_t>(keys[rank]); }
  int32_t& width(int64_t rank) const { return widths[row(rank)]; }

  void weigh(double temperature) const {
    const double best = scores[row(0)];
    for (int64_t i = 0; i < count; ++i) weights[i] = std::exp((scores[row(i)] - best) / temperature);
  }
};

void share_top(const Ranked& s, int64_t total, int64_t keep) {
  const int64_t kept = std::max<int64_t>(1, std::min({keep, total, s.count}));
  for (int64_t i = 0; i < kept; ++i) s.width(i) = static_cast<int32_t>(total / kept + (i < total % kept));
}

// REBASE: rank i gets ceil(left * weight_i / sum of the weights from i on).
void share_softmax(const Ranked& s, int64_t total, double* rest) {
  double sum = 0.0;
  for (int64_t i = s.count; i-- > 0;) rest[i] = sum += s.weights[i];
  for (int64_t i = 0, left = total; left > 0; ++i) {
    // 1e-12 keeps an exact share from being rounded up by the division's last bit.
    const double share = std::ceil(static_cast<double>(left) * s.weights[i] / rest[i] - 1e-12);
    s.width(i) = static_cast<int32_t>(std::min<double>(static_cast<double>(left), share));
    left -= s.width(i);
  }
}

// Rank i is drawn where cumulative(i-1) <= draw < cumulative(i), the weights normalised.
void share_draws(const Ranked& s, int64_t total, int64_t key, bool is_systematic, double* cumulative) {
  double normalizer = 0.0, reached = 0.0;
  for (int64_t i = 0; i < s.count; ++i) normalizer += s.weights[i];
  for (int64_t i = 0; i < s.count; ++i) cumulative[i] = reached += s.weights[i] / normalizer;
  const double first = uniform(key, 0);
  for (int64_t i = 0; i < total; ++i) {
    const double draw = is_systematic ? (static_cast<double>(i) + first) / static_cast<double>(total) : uniform(key, i);
    const int64_t rank = std::upper_bound(cumulative, cumulative + s.count, draw) - cumulative;
    ++s.width(std::min(rank, s.count - 1));
  }
}

struct Prune {
  const float* scores;
  const int32_t *indptr, *total, *keep;
  const int64_t* keys;
  int rule;
  double temperature;
  int32_t *widths, *counts;
};

// `keys`, `weights` and `sums` have room for the rows of the segment.
void prune_segment(const Prune& p, int64_t r, uint64_t* keys, double* weights, double* sums) {
  const int64_t begin = p.indptr[r], end = p.indptr[r + 1], total = p.total[r];
  int64_t count = 0;
  for (int64_t row = begin; row < end; ++row)
    if (std::isfinite(p.scores[row])) keys[count++] = rank_key(p.scores[row], row);
  p.counts[r] = count == 0 ? 0 : static_cast<int32_t>(total);
  if (p.counts[r] == 0) return;
  sort_keys(keys, reinterpret_cast<uint64_t*>(sums), count);
  const Ranked ranked{p.scores, p.widths, keys, weights, count};
  if (p.rule == TTS_TOP) return share_top(ranked, total, p.keep[r]);
  ranked.weigh(p.temperature);
  if (p.rule == TTS_SOFTMAX) return share_softmax(ranked, total, sums);
  share_draws(ranked, total, p.keys[r], p.rule == TTS_SYSTEMATIC, sums);
}

}  // namespace
}  // namespace tts

int tts_prune(int64_t N, int64_t R, const float* scores, const int32_t* indptr, const int32_t* total, const int32_t* keep,
              const int64_t* keys, int rule, double temperature, int64_t capacity, int32_t* widths, int32_t* parents,
              int32_t* counts) {
  using namespace tts;
  return guarded([&] {
    check_range("prune: rule", rule, TTS_TOP, TTS_MULTINOMIAL + 1);
    check_sizes("prune: parents", {capacity});
    check_indptr("prune: values of indptr", indptr, R, N);
    check_values("prune: values of total", total, R, 0, capacity + 1);
    check(rule == TTS_TOP || temperature > 0, "prune: temperature must be > 0, got " + std::to_string(temperature));
    check(rule == TTS_TOP || rule == TTS_SOFTMAX || keys != nullptr,
          "prune: rules systematic and multinomial draw and need keys");
    Scratch& scratch = thread_owned<Scratch>();
    auto* ranked = static_cast<uint64_t*>(scratch.take(N * 24));
    auto* weights = reinterpret_cast<double*>(ranked + N);
    const Prune p{scores, indptr, total, keep, keys, rule, temperature, widths, counts};
    std::fill_n(widths, N, 0);
#pragma omp parallel for schedule(dynamic, 8) if (N > kParallelRows)
    for (int64_t r = 0; r < R; ++r) prune_segment(p, r, ranked + indptr[r], weights + indptr[r], weights + N + indptr[r]);
    int64_t children = 0;
    for (int64_t r = 0; r < R; ++r) children += counts[r];
    check(children <= capacity,
          "prune: " + std::to_string(children) + " children do not fit the capacity of " + std::to_string(capacity));
    int32_t* child = parents;
    for (int64_t row = 0; row < N; ++row) child = std::fill_n(child, widths[row], static_cast<int32_t>(row));
    std::fill(child, parents + capacity, -1);
  });
}
