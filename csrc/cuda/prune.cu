// prune on the GPU: widths and fork plan in one launch.
//
// One block of threads per segment of n rows, and one more for what lies behind the last child: it reads the first score of every
// segment before its own, its n scores once, and writes n widths and its part of the plan. Invariant: where a part of the plan
// begins follows from the scores alone, so no block waits for another and nothing is allocated by an atomic; rows whose score is
// not finite sort behind all others and have no rank; arithmetic is double, sums have a fixed order.
#include <cmath>

#include "common/check.h"
#include "common/philox.h"
#include "cuda/launch.h"

namespace tts {
namespace {

constexpr int kSharedRows = 1024;  // a segment up to this size is ranked in shared memory

struct Prune {
  int64_t N, R;
  const float* scores;
  const int32_t *indptr, *total, *keep;
  const int64_t* keys;
  double temperature;
  int64_t capacity;
  uint64_t* ranked;  // [2 * N], of segments that do not fit shared memory
  double* weights;   // [N]
  int32_t *widths, *parents, *counts;
};

__device__ bool is_finite(float score) { return (__float_as_uint(score) & 0x7F800000u) != 0x7F800000u; }

// Ascending keys are descending scores, ties by row; scores that are not finite come last.
__device__ uint64_t sort_key(float score, uint32_t row) {
  if (!is_finite(score)) return ~uint64_t{0};
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 ties with +0
  const uint32_t key = bits & 0x80000000u ? bits : ~bits & 0x7FFFFFFFu;
  return static_cast<uint64_t>(key) << 32 | row;
}

// Children of the segments before r: `total` of each that has a finite score, which is nearly always its first.
__device__ int32_t children_before(const Prune& p, int64_t r, int32_t* shared) {
  int32_t children = 0;
  for (int64_t s = threadIdx.x; s < r; s += kThreads) {
    int32_t row = p.indptr[s];
    const int32_t end = p.indptr[s + 1];
    while (row < end && !is_finite(p.scores[row])) ++row;
    if (row < end) children += p.total[s];
  }
  return sum_block(children, shared);
}

// Bitonic sort of `size`, a power of two.
__device__ void sort(uint64_t* keys, int32_t size) {
  for (int32_t run = 2; run <= size; run *= 2)
    for (int32_t distance = run / 2; distance > 0; distance /= 2) {
      for (int32_t i = threadIdx.x; i < size; i += kThreads) {
        const int32_t other = i ^ distance;
        const bool is_ascending = (i & run) == 0;
        if (other > i && (keys[i] > keys[other]) == is_ascending) {
          const uint64_t key = keys[i];
          keys[i] = keys[other];
          keys[other] = key;
        }
      }
      __syncthreads();
    }
}

// keys[0:count] are the rows with a finite score by rank; returns count.
__device__ int32_t rank_rows(const Prune& p, int32_t begin, int32_t n, uint64_t* keys, int32_t* shared) {
  int32_t size = 1, count = 0;
  while (size < n) size *= 2;
  for (int32_t i = threadIdx.x; i < size; i += kThreads) {
    keys[i] = i < n ? sort_key(p.scores[begin + i], begin + i) : ~uint64_t{0};
    count += keys[i] != ~uint64_t{0};
    if (i < n) p.widths[begin + i] = 0;
  }
  count = sum_block(count, shared);
  sort(keys, size);
  return count;
}

__device__ int32_t row_of(uint64_t key) { return static_cast<int32_t>(key & 0xFFFFFFFFu); }

__device__ int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

__device__ void share_top(const Prune& p, const uint64_t* keys, int32_t count, int32_t total, int32_t keep) {
  const int32_t fitting = least(keep, least(total, count)), kept = fitting > 1 ? fitting : 1;
  for (int32_t i = threadIdx.x; i < kept; i += kThreads) p.widths[row_of(keys[i])] = total / kept + (i < total % kept);
}

// weights[rank] = e^((score - best) / temperature)
__device__ void weigh(const Prune& p, const uint64_t* keys, int32_t count, double* weights) {
  const double best = p.scores[row_of(keys[0])];
  for (int32_t i = threadIdx.x; i < count; i += kThreads) weights[i] = exp((p.scores[row_of(keys[i])] - best) / p.temperature);
  __syncthreads();
}

// REBASE: rank i gets ceil(left * weight_i / sum of the weights from i on).
__device__ void share_softmax(const Prune& p, const uint64_t* keys, int32_t count, int32_t total, double* weights,
                              double* shared) {
  double rest = 0.0;
  for (int32_t last = count - 1; last >= 0; last -= kThreads) {  // from the last rank to the first
    const int32_t i = last - static_cast<int32_t>(threadIdx.x);
    const double weight = i >= 0 ? weights[i] : 0.0, from_here = rest + scan_block(weight, shared);
    if (i >= 0) weights[i] = weight / from_here;
    rest += sum_block(weight, shared);
  }
  if (threadIdx.x != 0) return;
  for (int32_t i = 0, left = total; left > 0 && i < count; ++i) {
    // 1e-12 keeps an exact share from being rounded up by the division's last bit.
    const double share = left * weights[i] - 1e-12;
    int32_t width = static_cast<int32_t>(share);
    width = least(left, width + (static_cast<double>(width) < share));
    p.widths[row_of(keys[i])] = width;
    left -= width;
  }
}

// DORA: rank i gets its share of the total rounded to the nearest, as far as it reaches; the best get what is left, one each.
__device__ void share_proportional(const Prune& p, const uint64_t* keys, int32_t count, int32_t total, const double* weights,
                                   double* shared) {
  double all = 0.0;
  for (int32_t i = threadIdx.x; i < count; i += kThreads) all += weights[i];
  all = sum_block(all, shared);
  if (threadIdx.x != 0) return;
  int32_t left = total;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t width = least(left, static_cast<int32_t>(total * weights[i] / all + 0.5));
    p.widths[row_of(keys[i])] = width;
    left -= width;
  }
  for (int32_t i = 0; i < left; ++i) ++p.widths[row_of(keys[i])];
}

// A draw's rank is the first whose cumulative weight exceeds it; counts are integers, so their order does not matter.
__device__ void share_draws(const Prune& p, const uint64_t* keys, int32_t count, int32_t total, int64_t key, bool is_systematic,
                            double* weights, double* shared) {
  double all = 0.0, reached = 0.0;
  for (int32_t i = threadIdx.x; i < count; i += kThreads) all += weights[i];
  all = sum_block(all, shared);
  for (int32_t first = 0; first < count; first += kThreads) {
    const int32_t i = first + static_cast<int32_t>(threadIdx.x);
    const double weight = i < count ? weights[i] / all : 0.0, up_to = reached + scan_block(weight, shared);
    if (i < count) weights[i] = up_to;
    reached += sum_block(weight, shared);
  }
  for (int32_t i = threadIdx.x; i < total; i += kThreads) {
    const double draw = is_systematic ? (i + uniform(key, 0)) / total : uniform(key, i);
    int32_t low = 0, high = count - 1;  // the last rank takes what rounding leaves
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (weights[middle] > draw)
        high = middle;
      else
        low = middle + 1;
    }
    atomicAdd(&p.widths[row_of(keys[low])], 1);
  }
}

// The row of each child from `child` on; nothing beyond the capacity is written.
__device__ void write_children(const Prune& p, int32_t begin, int32_t end, int64_t child, int32_t* shared) {
  for (int32_t first = begin; first < end; first += kThreads) {
    const int32_t row = first + static_cast<int32_t>(threadIdx.x), width = row < end ? p.widths[row] : 0;
    const int64_t behind = child + scan_block(width, shared);
    for (int64_t at = behind - width; at < behind && at < p.capacity; ++at) p.parents[at] = row;
    child += sum_block(width, shared);
  }
}

template <int RULE>
__global__ void __launch_bounds__(kThreads) prune_kernel(Prune p) {
  __shared__ uint64_t shared_keys[kSharedRows];
  __shared__ double shared_weights[kSharedRows], shared_sums[kThreads];
  __shared__ int32_t shared_counts[kThreads];
  const int64_t r = blockIdx.x;
  const int64_t child = children_before(p, r, shared_counts);
  if (r == p.R) {
    for (int64_t row = p.indptr[r] + threadIdx.x; row < p.N; row += kThreads) p.widths[row] = 0;
    for (int64_t at = child + threadIdx.x; at < p.capacity; at += kThreads) p.parents[at] = -1;
    return;
  }
  const int32_t begin = p.indptr[r], end = p.indptr[r + 1], n = end - begin;
  uint64_t* keys = n <= kSharedRows ? shared_keys : p.ranked + 2 * static_cast<int64_t>(begin);
  double* weights = n <= kSharedRows ? shared_weights : p.weights + begin;
  const int32_t count = n > 0 ? rank_rows(p, begin, n, keys, shared_counts) : 0, total = count > 0 ? p.total[r] : 0;
  if (threadIdx.x == 0) p.counts[r] = total;
  if (total == 0) return;
  if (RULE == TTS_TOP) {
    share_top(p, keys, count, total, p.keep[r]);
  } else {
    weigh(p, keys, count, weights);
    if (RULE == TTS_SOFTMAX)
      share_softmax(p, keys, count, total, weights, shared_sums);
    else if (RULE == TTS_PROPORTIONAL)
      share_proportional(p, keys, count, total, weights, shared_sums);
    else
      share_draws(p, keys, count, total, p.keys[r], RULE == TTS_SYSTEMATIC, weights, shared_sums);
  }
  __syncthreads();
  write_children(p, begin, end, child, shared_counts);
}

}  // namespace
}  // namespace tts

int tts_cuda_prune(int64_t N, int64_t R, const float* scores, const int32_t* indptr, const int32_t* total, const int32_t* keep,
                   const int64_t* keys, int rule, double temperature, int64_t capacity, void* workspace, int32_t* widths,
                   int32_t* parents, int32_t* counts, void* stream) {
  using namespace tts;
  return guarded([&] {
    check_range("prune: rule", rule, TTS_TOP, TTS_PROPORTIONAL + 1);
    check_range("prune: N", N, 0, INT32_MAX);
    check_range("prune: R", R, 0, INT32_MAX);
    check_sizes("prune: parents", {capacity});
    check(rule == TTS_TOP || temperature > 0, "prune: temperature must be > 0, got " + std::to_string(temperature));
    check(R == 0 || (rule != TTS_SYSTEMATIC && rule != TTS_MULTINOMIAL) || keys != nullptr,
          "prune: rules systematic and multinomial draw and need keys");
    auto* ranked = static_cast<uint64_t*>(workspace);
    const Prune p{N,
                  R,
                  scores,
                  indptr,
                  total,
                  keep,
                  keys,
                  temperature,
                  capacity,
                  ranked,
                  reinterpret_cast<double*>(ranked + 2 * N),
                  widths,
                  parents,
                  counts};
    auto* const kernel = rule == TTS_TOP           ? prune_kernel<TTS_TOP>
                         : rule == TTS_SOFTMAX     ? prune_kernel<TTS_SOFTMAX>
                         : rule == TTS_SYSTEMATIC  ? prune_kernel<TTS_SYSTEMATIC>
                         : rule == TTS_MULTINOMIAL ? prune_kernel<TTS_MULTINOMIAL>
                                                   : prune_kernel<TTS_PROPORTIONAL>;
    launch(kernel, dim3(static_cast<unsigned>(R + 1)), stream, p);
  });
}
