// sample: draws tokens from rows of logits by inverse transform, moves the stop automaton, takes the statistics.
//
// A task is a run of draws. A row's first draw reads its V logits and leaves e^((logit - max) / temperature) with the sums of
// fixed blocks of 256 tokens in scratch memory; siblings that follow walk the block sums and one block only. Invariant: sums run
// over ids in order, blocks in order, in double; nothing depends on which draws share a task.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "common/check.h"
#include "common/philox.h"
#include "common/simd.h"
#include "common/threads.h"

namespace tts {
namespace {

constexpr int64_t kBlock = 256;
constexpr int64_t kBuckets = (0x3F800000 >> 20) + 1;  // of values in [0, 1] by exponent and 3 bits: 8 per octave
constexpr int64_t kParallelWork = 1 << 13;            // logits below which a second thread costs more than it saves
constexpr int64_t kTopTokens = 20;                    // of `confidence`
constexpr int32_t kStateMask = (1 << 24) - 1;
constexpr float kLog2E = 1.44269504088896341f;

struct Sample {
  int64_t R, V, N, A;
  const float* logits;
  const int32_t* row;
  const int64_t *key, *position;
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const int32_t *state, *next_state;
  bool with_statistics;
  int64_t* token;
  float* logprob;
  int32_t* next;
  float *confidence, *certainty;
};

// The largest finite logit and its lowest id. Not valid: a row with a NaN or +inf, or without a finite logit.
struct Peak {
  float value;
  int64_t id;
  bool is_valid;
};

TTS_CLONES Peak find_peak(const float* logits, int64_t V) {
  F32x16 most = splat(-INFINITY);
  I32x16 is_clean = most == most;
  int64_t i = 0;
  for (; i + kLanes <= V; i += kLanes) {
    const F32x16 value = load<kLanes>(logits + i);
    is_clean &= value < INFINITY;  // false for NaN
    most = larger(value, most);
  }
  Peak peak{max_lanes(most), 0, true};
  for (int lane = 0; lane < kLanes; ++lane) peak.is_valid &= is_clean[lane] != 0;
  for (; i < V; ++i) {
    peak.is_valid &= logits[i] < INFINITY;
    peak.value = logits[i] > peak.value ? logits[i] : peak.value;
  }
  peak.is_valid &= peak.value > -INFINITY;
  while (peak.is_valid && logits[peak.id] != peak.value) ++peak.id;
  return peak;
}

int64_t argmax_of_finite(const float* logits, int64_t V) {
  int64_t best = 0;
  for (int64_t i = 0; i < V; ++i)
    if (std::isfinite(logits[i]) && (!std::isfinite(logits[best]) || logits[i] > logits[best])) best = i;
  return best;
}

TTS_INLINE F64x8 sum_halves(F32x16 value) {
  const auto low = __builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7);
  const auto high = __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_convertvector(low, F64x8) + __builtin_convertvector(high, F64x8);
}

// The sum of each block of 256 weights, and of all blocks in order.
TTS_CLONES double sum_blocks(const float* weights, int64_t V, double* block_sums) {
  double total = 0.0;
  for (int64_t begin = 0; begin < V; begin += kBlock, ++block_sums) {
    F64x8 lanes = {};
    for (int64_t i = begin; i < std::min(V, begin + kBlock); i += kLanes) lanes += sum_halves(load<kLanes>(weights + i));
    *block_sums = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    total += *block_sums;
  }
  return total;
}

// weights[i] = e^((logits[i] - peak) / temperature), 0 behind the last.
TTS_CLONES void exponentiate(const float* logits, int64_t V, float peak, float temperature, float* weights) {
  const float factor = std::min(kLog2E / temperature, FLT_MAX);  // finite, so that the peak's weight is 1
  int64_t i = 0;
  for (; i + kLanes <= V; i += kLanes) store(weights + i, exp2((load<kLanes>(logits + i) - peak) * factor));
  if (i == V) return;
  const F32x16 last = (load_some(logits + i, V - i) - peak) * factor;
  store(weights + i, exp2(keep_first(last, V - i, -INFINITY)));
}

// Sets to 0 what comes after (value, id) in the order of descending weight, then ascending id.
TTS_CLONES void drop_after(float* weights, int64_t V, float value, int64_t id) {
  for (int64_t i = 0; i < V; ++i) weights[i] = weights[i] > value || (weights[i] == value && i <= id) ? weights[i] : 0.0f;
}

TTS_CLONES void drop_below(float* weights, int64_t V, float least) {
  for (int64_t i = 0; i < V; ++i) weights[i] = weights[i] >= least ? weights[i] : 0.0f;
}

float mean_of_top(const float* logits, int64_t V) {
  float top[kTopTokens];  // descending
  int64_t count = 0;
  for (int64_t i = 0; i < V; ++i) {
    if (count == kTopTokens && !(logits[i] > top[count - 1])) continue;
    int64_t at = count < kTopTokens ? count++ : count - 1;
    for (; at > 0 && top[at - 1] < logits[i]; --at) top[at] = top[at - 1];
    top[at] = logits[i];
  }
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += top[i];
  return static_cast<float>(sum / static_cast<double>(count));
}

double mean(const float* logits, int64_t V) {
  double sum = 0.0;
  for (int64_t i = 0; i < V; ++i) sum += logits[i];
  return sum / static_cast<double>(V);
}

// The state of one thread: the row that was read last and its filtered weights.
class RowSampler {
 public:
  static int64_t bytes(int64_t V) { return 64 + 20 * padded(V) + kBuckets * static_cast<int64_t>(sizeof(Bucket)); }

  RowSampler(const Sample& p, void* memory) : p_(p) {
    weights_ = static_cast<float*>(memory);
    block_sums_ = reinterpret_cast<double*>(weights_ + padded(p.V));
    candidates_ = reinterpret_cast<uint64_t*>(block_sums_ + padded(p.V));
    buckets_ = reinterpret_cast<Bucket*>(candidates_ + padded(p.V));
  }

  void draw(int64_t i) {
    if (p_.row[i] != row_) read_row(p_.row[i]);
    int64_t token = peak_.id;
    if (peak_.is_valid && p_.temperature[i] > 0) {
      filter({p_.temperature[i], p_.top_p[i], p_.min_p[i], p_.top_k[i]});
      token = invert(uniform(p_.key[i], p_.position[i]));
    }
    p_.token[i] = token;
    p_.logprob[i] = static_cast<float>(logits_[token] - lse_);
    p_.next[i] = p_.next_state[(p_.state[i] & kStateMask) * p_.V + token];
    p_.confidence[i] = confidence_;
    p_.certainty[i] = certainty_;
  }

 private:
  struct Bucket {
    int64_t count;
    double mass;
  };
  struct Filters {
    float temperature, top_p, min_p;
    int32_t top_k;
    bool operator==(const Filters& other) const {
      return temperature == other.temperature && top_p == other.top_p && min_p == other.min_p && top_k == other.top_k;
    }
  };

  static int64_t padded(int64_t V) { return (V + kBlock - 1) / kBlock * kBlock; }

  void read_row(int32_t row) {
    row_ = row;
    logits_ = p_.logits + row * p_.V;
    peak_ = find_peak(logits_, p_.V);
    lse_ = confidence_ = certainty_ = NAN;
    filters_ = {};
    if (!peak_.is_valid) {
      peak_.id = argmax_of_finite(logits_, p_.V);
      return;
    }
    filters_ = {1.0f, 1.0f, 0.0f, 0};
    exponentiate(logits_, p_.V, peak_.value, 1.0f, weights_);
    total_ = sum_blocks(weights_, p_.V, block_sums_);
    lse_ = peak_.value + std::log(total_);
    if (!p_.with_statistics) return;
    confidence_ = static_cast<float>(lse_ - mean_of_top(logits_, p_.V));
    certainty_ = static_cast<float>(lse_ - mean(logits_, p_.V) - std::log(static_cast<double>(p_.V)));
  }

  // Leaves in `weights_`, `block_sums_` and `total_` what the filters keep of the row.
  void filter(const Filters& wanted) {
    if (wanted == filters_) return;
    const bool is_there = filters_ == Filters{wanted.temperature, 1.0f, 0.0f, 0};
    filters_ = wanted;
    if (!is_there) exponentiate(logits_, p_.V, peak_.value, wanted.temperature, weights_);
    if (wanted.top_k > 0 && wanted.top_k < p_.V) keep_first(wanted.top_k, INFINITY);
    if (wanted.top_p < 1) keep_first(p_.V, wanted.top_p * sum_blocks(weights_, p_.V, block_sums_));
    if (wanted.min_p > 0) drop_below(weights_, p_.V, std::min(wanted.min_p, 1.0f));
    total_ = sum_blocks(weights_, p_.V, block_sums_);
  }

  // Keeps, by descending weight and then ascending id, the first token and those before which lie fewer than `count` tokens
  // and less than `mass`. Buckets by magnitude leave one bucket to sort; a small vocabulary is one.
  void keep_first(int64_t count, double mass) {
    int64_t rank = 0, low = 0, high = kBuckets;  // the buckets low..high-1 hold the last token to keep
    double before = 0.0;
    if (p_.V > kBlock) {
      fill_buckets();
      for (low = kBuckets - 1; low > 0 && rank + buckets_[low].count < count && before + buckets_[low].mass < mass; --low) {
        rank += buckets_[low].count;
        before += buckets_[low].mass;
      }
      high = low + 1;
    }
    const int64_t size = collect(low, high);
    int64_t kept = 0;
    for (; kept < size && (rank == 0 || (rank < count && before < mass)); ++kept, ++rank) before += weights_[id_of(kept)];
    if (kept > 0) drop_after(weights_, p_.V, weights_[id_of(kept - 1)], id_of(kept - 1));
  }

  void fill_buckets() {
    std::fill_n(buckets_, kBuckets, Bucket{});
    for (int64_t i = 0; i < p_.V; ++i) {
      Bucket& bucket = buckets_[bucket_of(weights_[i])];
      ++bucket.count;
      bucket.mass += weights_[i];
    }
  }

  static int64_t bucket_of(float weight) { return std::min<int64_t>(bit_cast<uint32_t>(weight) >> 20, kBuckets - 1); }
  int64_t id_of(int64_t candidate) const { return static_cast<uint32_t>(candidates_[candidate]); }

  // Sorts the tokens of the buckets low..high-1 by descending weight, then ascending id, and returns their number.
  int64_t collect(int64_t low, int64_t high) {
    int64_t size = 0;
    for (int64_t i = 0; i < p_.V; ++i) {
      candidates_[size] = uint64_t{~bit_cast<uint32_t>(weights_[i])} << 32 | static_cast<uint64_t>(i);
      size += bucket_of(weights_[i]) >= low && bucket_of(weights_[i]) < high;
    }
    std::sort(candidates_, candidates_ + size);
    return size;
  }

  // The first id whose cumulative weight exceeds uniform * total.
  int64_t invert(double uniform) const {
    const double target = uniform * total_;
    double reached = 0.0;
    int64_t block = 0;
    while ((block + 1) * kBlock < p_.V && reached + block_sums_[block] <= target) reached += block_sums_[block++];
    int64_t last = peak_.id;
    for (int64_t i = block * kBlock; i < std::min(p_.V, (block + 1) * kBlock); ++i) {
      if (weights_[i] == 0) continue;
      last = i;
      if ((reached += weights_[i]) > target) break;
    }
    return last;  // also where rounding leaves the block's own sum short of the target
  }

  const Sample& p_;
  float* weights_;        // [padded V]
  double* block_sums_;    // [padded V / 256]
  uint64_t* candidates_;  // [V]
  Bucket* buckets_;
  int64_t row_ = -1;
  const float* logits_ = nullptr;
  Peak peak_{};
  Filters filters_{};
  double lse_ = 0, total_ = 0;
  float confidence_ = 0, certainty_ = 0;
};

void check_sample(const Sample& p) {
  check_sizes("sample: logits", {p.R, p.V});
  check_sizes("sample: next_state", {p.A, p.V});
  if (p.N == 0) return;
  check_range("sample: V", p.V, 1, INT32_MAX);
  check_values("sample: values of row", p.row, p.N, 0, p.R);
  for (int64_t i = 0; i < p.N; ++i) {
    check_range("sample: the low 24 bits of state", p.state[i] & kStateMask, 0, p.A);
    check(p.temperature[i] >= 0, "sample: values of temperature must be >= 0, got " + std::to_string(p.temperature[i]));
  }
}

}  // namespace
}  // namespace tts

int tts_sample(int64_t R, int64_t V, int64_t N, int64_t A, const float* logits, const int32_t* row, const int64_t* key,
               const int64_t* position, const float* temperature, const int32_t* top_k, const float* top_p, const float* min_p,
               const int32_t* state, const int32_t* next_state, int with_statistics, int64_t* token, float* logprob,
               int32_t* next, float* confidence, float* certainty) {
  using namespace tts;
  return guarded([&] {
    const Sample p{R,     V,       N,        A,           logits,
                   row,   key,     position, temperature, top_k,
                   top_p, min_p,   state,    next_state,  with_statistics != 0,
                   token, logprob, next,     confidence,  certainty};
    check_sample(p);
    Scratch& scratch = thread_owned<Scratch>();
    const int64_t bytes = (RowSampler::bytes(V) + 63) / 64 * 64;
    const int threads = N > 1 && N * V > kParallelWork ? max_threads() : 1;
    char* memory = static_cast<char*>(scratch.take(threads * bytes));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      RowSampler sampler(p, memory + thread_index() * bytes);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < N; ++i) sampler.draw(i);
    }
  });
}
