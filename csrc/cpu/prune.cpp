// prune: how many children each row of a segment gets, for many segments at once.
//
// A task is one segment of n rows: it reads n scores, ranks them (score descending, then row ascending) and writes n widths.
// Invariant: rows whose score is not finite have no rank, so they never enter; the order of all sums is that of the ranks, the
// arithmetic double, as in the reference. The fork plan is then written in row order.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/philox.h"
#include "common/simd.h"
#include "common/threads.h"

namespace tts {
namespace {

constexpr int64_t kParallelRows = 1 << 11;  // rows below which a second thread costs more than it saves
constexpr int64_t kCounted = 64;            // keys up to which comparing all with all is faster than digits
constexpr int kDigits = 4;
constexpr int64_t kWidth = 8;  // children that one store writes

struct Prune {
  const float* scores;
  const int32_t *indptr, *total, *keep;
  const int64_t* keys;
  int rule;
  double temperature;
  int32_t *widths, *counts;
};

// One segment, and a thread's memory for the largest one.
struct Segment {
  static int64_t bytes(int64_t rows) { return (rows + 2 * kLanes) / kLanes * kLanes * 48; }

  Segment(void* memory, int64_t rows) {
    const int64_t room = (rows + 2 * kLanes) / kLanes * kLanes;
    pairs = static_cast<uint64_t*>(memory);
    spare = pairs + room;
    weights = reinterpret_cast<double*>(spare + room);
    sums = weights + room;
    keys = reinterpret_cast<uint32_t*>(sums + room);
    rows_by_key = reinterpret_cast<int32_t*>(keys + room);
    rows_by_rank = rows_by_key + room;
  }

  uint64_t *pairs, *spare;
  double *weights, *sums;  // by rank
  uint32_t* keys;
  int32_t *rows_by_key, *rows_by_rank;
  int64_t count = 0;  // of rows with a finite score
};

// Ascending keys are descending scores.
TTS_INLINE uint32_t descending(float score) {
  const auto bits = bit_cast<uint32_t>(score + 0.0f);  // -0 ties with +0
  return bits & 0x80000000u ? bits : ~bits & 0x7FFFFFFFu;
}

void collect_keys(const float* scores, int64_t begin, int64_t end, Segment& s) {
  s.count = 0;
  for (int64_t row = begin; row < end; ++row) {
    s.keys[s.count] = descending(scores[row]);
    s.rows_by_key[s.count] = static_cast<int32_t>(row);
    s.count += (bit_cast<uint32_t>(scores[row]) & 0x7F800000u) != 0x7F800000u;
  }
}

// A key's rank is the number of keys before it: all are compared with all, sixteen at a time and without a branch.
TTS_CLONES void rank_by_counting(const Segment& s) {
  const U32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < s.count; i += kLanes) {
    U32x16 key, rank = {};
    std::memcpy(&key, s.keys + i, sizeof(key));
    const U32x16 next = key + 1;  // finite scores have keys below 2^32 - 1
    for (int64_t j = 0; j < s.count; ++j) {
      const U32x16 bound = static_cast<uint32_t>(j) < lane + static_cast<uint32_t>(i) ? next : key;  // ties by row
      rank += s.keys[j] < bound ? U32x16{} + 1u : U32x16{};
    }
    uint32_t ranks[kLanes];
    std::memcpy(ranks, &rank, sizeof(rank));
    for (int64_t j = 0; j < std::min<int64_t>(kLanes, s.count - i); ++j) s.rows_by_rank[ranks[j]] = s.rows_by_key[i + j];
  }
}

// Digit by digit of 8 bits from the last, all digits counted in one pass; a digit that all keys share is skipped.
void rank_by_digits(const Segment& s) {
  int32_t next[kDigits][256] = {};
  for (int64_t i = 0; i < s.count; ++i) {
    s.pairs[i] = uint64_t{s.keys[i]} << 32 | static_cast<uint32_t>(s.rows_by_key[i]);
    for (int digit = 0; digit < kDigits; ++digit) ++next[digit][s.keys[i] >> 8 * digit & 255];
  }
  uint64_t *from = s.pairs, *to = s.spare;
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = 32 + 8 * digit;
    if (next[digit][from[0] >> shift & 255] == s.count) continue;
    int32_t before = 0;
    for (int32_t& first : next[digit]) before += std::exchange(first, before);
    for (int64_t i = 0; i < s.count; ++i) to[next[digit][from[i] >> shift & 255]++] = from[i];
    std::swap(from, to);
  }
  for (int64_t i = 0; i < s.count; ++i) s.rows_by_rank[i] = static_cast<int32_t>(from[i]);
}

void weigh(const Prune& p, const Segment& s) {
  const double best = p.scores[s.rows_by_rank[0]];
  for (int64_t i = 0; i < s.count; ++i) s.weights[i] = (p.scores[s.rows_by_rank[i]] - best) / p.temperature;
  for (int64_t i = 0; i < s.count; ++i) s.weights[i] = std::exp(s.weights[i]);
}

void share_top(const Prune& p, const Segment& s, int64_t total, int64_t keep) {
  const int64_t kept = std::max<int64_t>(1, std::min({keep, total, s.count}));
  const int64_t share = total / kept, remainder = total % kept;
  for (int64_t i = 0; i < kept; ++i) p.widths[s.rows_by_rank[i]] = static_cast<int32_t>(share + (i < remainder));
}

// REBASE: rank i gets ceil(left * weight_i / sum of the weights from i on).
void share_softmax(const Prune& p, const Segment& s, int64_t total) {
  double sum = 0.0;
  for (int64_t i = s.count; i-- > 0;) s.sums[i] = sum += s.weights[i];
  for (int64_t i = 0; i < s.count; ++i) s.weights[i] /= s.sums[i];  // here, where no division waits for the one before
  for (int64_t i = 0, left = total; left > 0; ++i) {
    // 1e-12 keeps an exact share from being rounded up by the division's last bit.
    const double share = static_cast<double>(left) * s.weights[i] - 1e-12;
    auto width = static_cast<int64_t>(share);
    width = std::min(left, width + (static_cast<double>(width) < share));
    p.widths[s.rows_by_rank[i]] = static_cast<int32_t>(width);
    left -= width;
  }
}

// DORA: rank i gets its share of the total rounded to the nearest, as far as it reaches; the best get what is left, one each.
void share_proportional(const Prune& p, const Segment& s, int64_t total) {
  double normalizer = 0.0;
  for (int64_t i = 0; i < s.count; ++i) normalizer += s.weights[i];
  int64_t left = total;
  for (int64_t i = 0; i < s.count; ++i) {
    const auto width = static_cast<int64_t>(std::floor(static_cast<double>(total) * s.weights[i] / normalizer + 0.5));
    p.widths[s.rows_by_rank[i]] = static_cast<int32_t>(std::min(left, width));
    left -= std::min(left, width);
  }
  for (int64_t i = 0; i < left; ++i) ++p.widths[s.rows_by_rank[i]];
}

// Rank i is drawn where cumulative(i-1) <= draw < cumulative(i), the weights normalised.
void share_draws(const Prune& p, const Segment& s, int64_t total, int64_t key) {
  double normalizer = 0.0, reached = 0.0;
  for (int64_t i = 0; i < s.count; ++i) normalizer += s.weights[i];
  for (int64_t i = 0; i < s.count; ++i) s.weights[i] /= normalizer;
  for (int64_t i = 0; i < s.count; ++i) s.sums[i] = reached += s.weights[i];
  const double first = uniform(key, 0);
  for (int64_t i = 0; i < total; ++i) {
    const double draw =
        p.rule == TTS_SYSTEMATIC ? (static_cast<double>(i) + first) / static_cast<double>(total) : uniform(key, i);
    const int64_t rank = std::upper_bound(s.sums, s.sums + s.count, draw) - s.sums;
    ++p.widths[s.rows_by_rank[std::min(rank, s.count - 1)]];
  }
}

void prune_segment(const Prune& p, int64_t r, Segment& s) {
  const int64_t begin = p.indptr[r], end = p.indptr[r + 1], total = p.total[r];
  std::fill(p.widths + begin, p.widths + end, 0);
  collect_keys(p.scores, begin, end, s);
  p.counts[r] = s.count == 0 ? 0 : static_cast<int32_t>(total);
  if (p.counts[r] == 0) return;
  s.count <= kCounted ? rank_by_counting(s) : rank_by_digits(s);
  if (p.rule == TTS_TOP) return share_top(p, s, total, p.keep[r]);
  weigh(p, s);
  if (p.rule == TTS_SOFTMAX) return share_softmax(p, s, total);
  if (p.rule == TTS_PROPORTIONAL) return share_proportional(p, s, total);
  share_draws(p, s, total, p.keys[r]);
}

// parents = the row of each child. Each row is stored eight times at once, whatever its width: the next row overwrites the rest.
void write_parents(const int32_t* widths, int64_t N, int32_t* parents, int64_t capacity) {
  typedef int32_t I32x8 __attribute__((vector_size(32)));
  int32_t *child = parents, *const end = parents + capacity;
  for (int64_t row = 0; row < N; ++row) {
    const auto value = static_cast<int32_t>(row);
    if (widths[row] <= kWidth && end - child >= kWidth) {
      const I32x8 eight = I32x8{} + value;
      std::memcpy(child, &eight, sizeof(eight));
    } else {
      std::fill_n(child, widths[row], value);
    }
    child += widths[row];
  }
  std::fill(child, end, -1);
}

}  // namespace
}  // namespace tts

int tts_prune(int64_t N, int64_t R, const float* scores, const int32_t* indptr, const int32_t* total, const int32_t* keep,
              const int64_t* keys, int rule, double temperature, int64_t capacity, int32_t* widths, int32_t* parents,
              int32_t* counts) {
  using namespace tts;
  return guarded([&] {
    check_range("prune: rule", rule, TTS_TOP, TTS_PROPORTIONAL + 1);
    check_sizes("prune: parents", {capacity});
    check_indptr("prune: values of indptr", indptr, R, N);
    check_values("prune: values of total", total, R, 0, capacity + 1);
    check(rule == TTS_TOP || temperature > 0, "prune: temperature must be > 0, got " + std::to_string(temperature));
    check(R == 0 || (rule != TTS_SYSTEMATIC && rule != TTS_MULTINOMIAL) || keys != nullptr,
          "prune: rules systematic and multinomial draw and need keys");
    int64_t most = 0;
    for (int64_t r = 0; r < R; ++r) most = std::max<int64_t>(most, indptr[r + 1] - indptr[r]);
    const int threads = N > kParallelRows ? max_threads() : 1;
    char* memory = static_cast<char*>(thread_owned<Scratch>().take(threads * Segment::bytes(most)));
    const Prune p{scores, indptr, total, keep, keys, rule, temperature, widths, counts};
    std::fill(widths + indptr[R], widths + N, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Segment segment(memory + thread_index() * Segment::bytes(most), most);
#pragma omp for schedule(dynamic, 8)
      for (int64_t r = 0; r < R; ++r) prune_segment(p, r, segment);
    }
    int64_t children = 0;
    for (int64_t r = 0; r < R; ++r) children += counts[r];
    check(children <= capacity,
          "prune: " + std::to_string(children) + " children do not fit the capacity of " + std::to_string(capacity));
    write_parents(widths, N, parents, capacity);
  });
}
