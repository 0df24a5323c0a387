// sample: draws tokens from rows of logits by inverse transform, moves the stop automaton, takes the statistics.
//
// A task is a run of draws. A row's first draw reads its V logits once, in blocks of 256 tokens, and keeps for each of a block's
// 16 lanes the largest logit and the sum of e^((logit - largest) / temperature): 3/16 of the row's bytes, in cache. A draw finds
// its block by the cumulative sums and computes the weights of that block again. Filters read the row once more, from cache, and
// leave a list of (weight, id). A row of half precision is widened block by block, and for filters as a whole, in cache.
// Invariant: sums run over fixed blocks in order, blocks in double; nothing depends on which draws share a task.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "common/check.h"
#include "common/philox.h"
#include "common/simd.h"
#include "common/threads.h"
#include "cpu/sample_lists.h"
#include "cpu/sample_row.h"

namespace tts {
namespace {

constexpr int64_t kLeastSample = 1024;      // weights that estimate a distribution
constexpr double kCaution = 0.8;            // of an estimate, so that it rarely excludes what is kept
constexpr int64_t kParallelWork = 1 << 13;  // logits below which a second thread costs more than it saves
constexpr int64_t kTopTokens = 20;          // of `confidence`
constexpr int32_t kStateMask = (1 << 24) - 1;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLeastWeight = 2 * FLT_MIN;  // less is 0 or might be

struct Sample {
  int dtype;
  int64_t R, V, N, A;
  const void* logits;
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

int64_t argmax_of_finite(const float* logits, int64_t V) {
  int64_t best = 0;
  for (int64_t i = 0; i < V; ++i)
    if (std::isfinite(logits[i]) && (!std::isfinite(logits[best]) || logits[i] > logits[best])) best = i;
  return best;
}

template <class T>
TTS_CLONES void widen_row(const T* row, int64_t V, float* to) {
  widen(row, V, to);
}

// ---- statistics

// The largest of the values it was given, descending.
struct TopTokens {
  float values[kTopTokens];
  int64_t count = 0;

  bool takes(float value) const { return count < kTopTokens || value > values[count - 1]; }
  void insert(float value) {
    if (!takes(value)) return;
    int64_t at = count < kTopTokens ? count++ : count - 1;
    for (; at > 0 && values[at - 1] < value; --at) values[at] = values[at - 1];
    values[at] = value;
  }
};

// The 20 lanes with the largest maxima bound the 20 largest logits from below: few blocks are looked at again.
float mean_of_top(const float* logits, int64_t V, const F32x16* most, const float* tops) {
  TopTokens lanes, tokens;
  for (int64_t b = 0; b * kBlock < V; ++b)
    for (int lane = 0; lanes.takes(tops[b]) && lane < kLanes; ++lane) lanes.insert(most[b][lane]);
  const float least = lanes.takes(-INFINITY) ? -INFINITY : lanes.values[kTopTokens - 1];
  for (int64_t b = 0; b * kBlock < V; ++b) {
    if (tops[b] < least || !tokens.takes(tops[b])) continue;
    for (int64_t i = b * kBlock; i < std::min(V, (b + 1) * kBlock); ++i) tokens.insert(logits[i]);
  }
  double sum = 0.0;
  for (int64_t i = 0; i < tokens.count; ++i) sum += tokens.values[i];
  return static_cast<float>(sum / static_cast<double>(tokens.count));
}

// ---- draws

// The state of one thread: the row that was read last, and what the filters of the last draw keep of it.
class RowSampler {
 public:
  static int64_t bytes(int64_t V) { return padded_blocks(V) * (3 * 64 + 4 + 8 + 4 * 4 * kBlock) + 4 * 64; }

  RowSampler(const Sample& p, void* memory) : p_(p), blocks_((p.V + kBlock - 1) / kBlock) {
    const int64_t blocks = padded_blocks(p.V), list = blocks * kBlock + kLanes;
    most_ = static_cast<F32x16*>(memory);
    plain_sums_ = most_ + blocks;
    tempered_sums_ = plain_sums_ + blocks;
    ends_ = reinterpret_cast<double*>(tempered_sums_ + blocks);
    tops_ = reinterpret_cast<float*>(ends_ + blocks);
    list_ = tops_ + blocks;
    work_ = list_ + list;
    ids_ = reinterpret_cast<int32_t*>(work_ + list);
    wide_ = reinterpret_cast<float*>(ids_ + list);
  }

  void draw(int64_t i) {
    const Filters filters{p_.temperature[i], p_.top_p[i], p_.min_p[i], p_.top_k[i]};
    if (p_.row[i] != row_) read_row(p_.row[i], filters.temperature);
    const int64_t token = choose(filters, i);
    p_.token[i] = token;
    p_.logprob[i] = static_cast<float>(logit(token) - lse_);
    p_.next[i] = p_.next_state[(p_.state[i] & kStateMask) * p_.V + token];
    p_.confidence[i] = confidence_;
    p_.certainty[i] = certainty_;
  }

 private:
  struct Filters {
    float temperature, top_p, min_p;
    int32_t top_k;
    bool operator==(const Filters& other) const {
      return temperature == other.temperature && top_p == other.top_p && min_p == other.min_p && top_k == other.top_k;
    }
  };

  static int64_t padded_blocks(int64_t V) { return (V + 16 * kBlock - 1) / (16 * kBlock) * 16; }

  // 2^(factor * x) = e^(x / temperature), finite so that the peak's weight is 1.
  static float factor_of(float temperature) { return std::min(kLog2E / temperature, FLT_MAX); }

  // Valid is a row with a finite logit and without NaN and +inf, which make the sum NaN.
  void read_row(int32_t row, float temperature) {
    row_ = row;
    logits_ = p_.dtype == TTS_F32 ? static_cast<const float*>(p_.logits) + row * p_.V : nullptr;
    filters_ = {};
    const bool is_tempered = temperature > 0 && temperature != 1;
    const float factors[] = {kLog2E, is_tempered ? factor_of(temperature) : 0.0f};
    double logit_sum = 0;
    with_row([&](auto* logits) {
      logit_sum = is_tempered ? sum_row<2>(logits, p_.V, factors, most_, plain_sums_, tempered_sums_)
                              : sum_row<1>(logits, p_.V, factors, most_, plain_sums_, tempered_sums_);
    });
    tempered_ = is_tempered ? temperature : 0.0f;
    peak_ = find_tops(most_, blocks_, tops_);
    const double total = add_up(most_, plain_sums_, blocks_, peak_, kLog2E);
    is_valid_ = total > 0;
    lse_ = is_valid_ ? peak_ + std::log(total) : NAN;
    confidence_ = certainty_ = NAN;
    if (!p_.with_statistics || !is_valid_) return;
    const auto V = static_cast<double>(p_.V);
    confidence_ = static_cast<float>(lse_ - mean_of_top(in_float32(), p_.V, most_, tops_));
    certainty_ = static_cast<float>(lse_ - logit_sum / V - std::log(V));
  }

  // body(the row as it was given)
  template <class Body>
  void with_row(Body&& body) const {
    with_dtype(p_.dtype, [&](auto element) { body(static_cast<const decltype(element)*>(p_.logits) + row_ * p_.V); });
  }

  // The whole row; widened at the first need.
  const float* in_float32() {
    if (logits_ == nullptr) with_row([&](auto* logits) { widen_row(logits, p_.V, wide_); }), logits_ = wide_;
    return logits_;
  }

  // One block of it, -inf behind the row's end.
  void copy_block_of_row(int64_t block, float* to) const {
    const int64_t begin = block * kBlock;
    with_row([&](auto* logits) { copy_block(logits + begin, std::min(kBlock, p_.V - begin), to); });
  }

  double logit(int64_t token) const {
    double value = 0;
    with_row([&](auto* logits) { value = load1(logits + token); });
    return value;
  }

  int64_t choose(const Filters& filters, int64_t i) {
    if (!is_valid_) return argmax_of_finite(in_float32(), p_.V);
    if (filters.temperature == 0) return find_peak();
    filter(filters);
    return invert(uniform(p_.key[i], p_.position[i]));
  }

  int64_t find_peak() const {
    int64_t block = 0;
    while (tops_[block] != peak_) ++block;
    float logits[kBlock];
    copy_block_of_row(block, logits);
    return block * kBlock + (std::find(logits, logits + kBlock, peak_) - logits);
  }

  // Leaves in `ends_`, and in the list if it is one, what the filters keep of the row.
  void filter(const Filters& wanted) {
    if (wanted == filters_) return;
    filters_ = wanted;
    const float temperature = wanted.temperature;
    factor_ = factor_of(temperature);
    if (temperature != 1 && temperature != tempered_) {
      with_row([&](auto* logits) { sum_row<1>(logits, p_.V, &factor_, most_, tempered_sums_, tempered_sums_); });
      tempered_ = temperature;
    }
    total_ = accumulate(most_, temperature == 1 ? plain_sums_ : tempered_sums_, blocks_, peak_, factor_, ends_);
    ends_size_ = blocks_;
    const bool has_top_k = wanted.top_k > 0 && wanted.top_k < p_.V;
    is_list_ = has_top_k || wanted.top_p < 1 || wanted.min_p > 0;
    if (is_list_) fill_list(wanted, has_top_k);
  }

  void fill_list(const Filters& wanted, bool has_top_k) {
    const float min_p = std::min(wanted.min_p, 1.0f);
    if (has_top_k)
      collect(bound_of_top(wanted.top_k));
    else if (wanted.top_p < 1)
      collect_mass(wanted.top_p);
    else
      collect(min_p);
    if (has_top_k) {
      cut(wanted.top_k, INFINITY);
      total_ = accumulate_list(list_, size_, ends_);
    }
    if (wanted.top_p < 1) cut(size_, wanted.top_p * total_);
    if (wanted.min_p > 0) keep_in_list({std::nextafter(min_p, 0.0f)});
    total_ = accumulate_list(list_, size_, ends_);
    ends_size_ = (size_ + kBlock - 1) / kBlock;
  }

  // A weight that `count` tokens reach, because the maxima of as many lanes do.
  float bound_of_top(int64_t count) {
    const int64_t lanes = blocks_ * kLanes;
    if (count > lanes) return 0.0f;
    std::memcpy(work_, most_, static_cast<size_t>(lanes) * sizeof(float));
    weigh_list(work_, lanes, peak_, factor_);
    return select(work_, lanes, 0.0f, count, INFINITY).weight;
  }

  // Collects at least the tokens that top_p keeps. What comes after a kept token, itself included, has mass > (1 - top_p) *
  // total, and none of these V is heavier than it is. That bound is loose, so an estimate is tried first.
  void collect_mass(float top_p) {
    const double rest = std::min(1.0, 1.0 - top_p) * total_;
    const auto bound = static_cast<float>(std::min(0.5, 0.99 * rest / static_cast<double>(p_.V)));
    const float estimate = estimate_of_mass(rest, bound);
    if (estimate > bound) {
      collect(estimate);
      if (accumulate_list(list_, size_, ends_) >= top_p * total_) return;
    }
    collect(bound);
  }

  // About the weight below which tokens have a mass of `rest`, from the first 16 tokens of each block; 0 if they do not tell.
  // Heavy tokens that these miss do no harm: only the light ones count.
  float estimate_of_mass(double rest, float least) {
    const int64_t whole = p_.V / kBlock, size = whole * kLanes;
    if (size < kLeastSample) return 0.0f;
    const float* logits = in_float32();
    for (int64_t b = 0; b < whole; ++b) std::copy_n(logits + b * kBlock, kLanes, work_ + b * kLanes);
    weigh_list(work_, size, peak_, factor_);
    const double light = kCaution * rest * static_cast<double>(size) / static_cast<double>(p_.V);
    return std::min(0.5f, select(work_, size, least, size, accumulate_list(work_, size, ends_) - light).weight);
  }

  // Makes the list of all tokens with weights from `least` on, and of some that are 1 % lighter.
  void collect(float least) {
    least = std::max(least, kLeastWeight);
    const double bound = peak_ + std::log2(0.99 * least) / factor_;
    const Range range{std::nextafter(static_cast<float>(bound), -INFINITY)};
    const float* logits = in_float32();
    size_ = 0;
    for (int64_t b = 0; b < blocks_; ++b) {
      if (tops_[b] <= range.low) continue;
      const int64_t begin = b * kBlock, count = std::min(kBlock, p_.V - begin);
      size_ += keep(logits + begin, nullptr, static_cast<int32_t>(begin), count, range, list_ + size_, ids_ + size_);
    }
    weigh_list(list_, size_, peak_, factor_);
    least_ = static_cast<float>(0.99 * std::exp2((static_cast<double>(range.low) - peak_) * factor_));
  }

  // Keeps, by descending weight and then ascending id, the first token and those before which lie fewer than `count` tokens and
  // less than `mass`.
  void cut(int64_t count, double mass) {
    std::copy_n(list_, size_ + kLanes, work_);
    const Cut last = select(work_, size_, least_, count, mass);
    int32_t last_id = -1;
    for (int64_t i = 0, ties = last.ties; ties > 0; ++i)
      if (list_[i] == last.weight && --ties == 0) last_id = ids_[i];
    keep_in_list({last.weight, INFINITY, last_id});
    least_ = std::nextafter(last.weight, 0.0f);
  }

  void keep_in_list(const Range& range) {
    size_ = keep(list_, ids_, 0, size_, range, list_, ids_);
    std::fill_n(list_ + size_, kLanes, 0.0f);
  }

  // The first id whose cumulative weight exceeds uniform * total.
  int64_t invert(double uniform) const {
    const double target = uniform * total_;
    const int64_t block = std::min<int64_t>(std::upper_bound(ends_, ends_ + ends_size_, target) - ends_, ends_size_ - 1);
    const int64_t begin = block * kBlock, count = std::min(kBlock, (is_list_ ? size_ : p_.V) - begin);
    const double reached = block == 0 ? 0.0 : ends_[block - 1];
    if (is_list_) return ids_[begin + invert_block(list_ + begin, count, reached, target)];
    float logits[kBlock], weights[kBlock];
    copy_block_of_row(block, logits);
    weigh_block(logits, most_[block], peak_, factor_, weights);
    return begin + invert_block(weights, count, reached, target);
  }

  const Sample& p_;
  const int64_t blocks_;
  F32x16 *most_, *plain_sums_, *tempered_sums_;  // [blocks]
  double* ends_;                                 // [blocks]: cumulative weights of the row's blocks or of the list's
  float* tops_;                                  // [blocks]
  float *list_, *work_;                          // [V + 16]
  int32_t* ids_;                                 // [V + 16]
  float* wide_;                                  // [V]: the row, where it is not float32
  int64_t row_ = -1, size_ = 0, ends_size_ = 0;
  const float* logits_ = nullptr;               // the row in float32, once it is there
  float peak_ = 0, tempered_ = 0, factor_ = 0;  // `tempered_`: the temperature of `tempered_sums_`
  float least_ = 0;                             // the list's weights are larger
  bool is_valid_ = false, is_list_ = false;
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

int tts_sample(int dtype, int64_t R, int64_t V, int64_t N, int64_t A, const void* logits, const int32_t* row, const int64_t* key,
               const int64_t* position, const float* temperature, const int32_t* top_k, const float* top_p, const float* min_p,
               const int32_t* state, const int32_t* next_state, int with_statistics, int64_t* token, float* logprob,
               int32_t* next, float* confidence, float* certainty) {
  using namespace tts;
  return guarded([&] {
    check_range("sample: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    const Sample p{dtype,    R,           V,     N,          A,        logits, row,        key,
                   position, temperature, top_k, top_p,      min_p,    state,  next_state, with_statistics != 0,
                   token,    logprob,     next,  confidence, certainty};
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
