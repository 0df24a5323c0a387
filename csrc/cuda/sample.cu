// sample on the GPU: sums of blocks of logits in one launch, draws in another.
//
// The first launch reads 4*V bytes per run of neighbours that share row and temperature, and writes 16 for each block of the row.
// The second has one block of threads per draw: a plain draw reads the sums and the one block of logits that it hits; a filter
// finds its cut by three digits of the logits' order, a pass over the row for each, from cache, and one more pass for the weights
// that it leaves. Invariant: what order could change is added in integers or in a fixed order, so a draw's bits depend on its own
// row and settings alone, and on no run before.
#include <cfloat>
#include <cmath>

#include "common/check.h"
#include "common/philox.h"
#include "cuda/launch.h"
#include "cuda/sample_row.h"

namespace tts {
namespace {

constexpr uint32_t kTopTokens = 20;  // of `confidence`
constexpr int32_t kStateMask = (1 << 24) - 1;
constexpr unsigned long long kNoMass = 1ULL << 63;  // more than all weigh
constexpr float kLog2E = 1.44269504088896341f;

struct Sample {
  int64_t V, N, num_blocks;
  const float* logits;
  const int32_t* row;
  const int64_t *key, *position;
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const int32_t *state, *next_state;
  bool with_statistics;
  Sums* sums;    // [N, num_blocks], of the first draw of each run
  double* kept;  // [N, num_blocks]: the weights that the draw's filters keep
  int64_t* token;
  float* logprob;
  int32_t* next;
  float *confidence, *certainty;
};

struct Addends {
  float plain, tempered, logits;

  __device__ Addends& operator+=(const Addends& other) {
    plain += other.plain;
    tempered += other.tempered;
    logits += other.logits;
    return *this;
  }
};

// 2^(factor * x) = e^(x / temperature), finite so that the peak's weight is 1.
__device__ float factor_of(float temperature) {
  const float factor = kLog2E / (temperature > 0 ? temperature : 1.0f);
  return factor < FLT_MAX ? factor : FLT_MAX;
}

// ---- sums

__device__ bool begins_run(const Sample& p, int64_t i) {
  return i == 0 || p.row[i] != p.row[i - 1] || p.temperature[i] != p.temperature[i - 1];
}

__global__ void __launch_bounds__(kThreads) sums_kernel(Sample p) {
  __shared__ Addends shared[kThreads];
  __shared__ float shared_floats[kThreads];
  const int64_t i = blockIdx.x, b = blockIdx.y;
  if (!begins_run(p, i)) return;
  float values[kPerThread], most = -FLT_MAX;  // finite, for blocks without a finite logit
  load_block(p.logits + p.row[i] * p.V, p.V, b, values);
  for (int j = 0; j < kPerThread; ++j) most = values[j] > most ? values[j] : most;
  most = max_block(most, shared_floats);
  Addends sums{};
  const float factor = factor_of(p.temperature[i]);
  for (int j = 0; j < kPerThread; ++j) {
    sums.plain += exp2f((values[j] - most) * kLog2E);  // NaN and +inf make it NaN
    sums.tempered += exp2f((values[j] - most) * factor);
    sums.logits += b * kBlock + j * kThreads + threadIdx.x < p.V ? values[j] : 0.0f;
  }
  sums = sum_block(sums, shared);
  if (threadIdx.x == 0) p.sums[i * p.num_blocks + b] = {most, sums.plain, sums.tempered, sums.logits};
}

// The first draw of the run of draw i.
__device__ int64_t begin_of_run(const Sample& p, int64_t i, Shared& shared) {
  if (threadIdx.x == 0) shared.last = -1;
  __syncthreads();
  for (int64_t end = i + 1; shared.last < 0; end -= kThreads) {
    const int64_t at = end - 1 - threadIdx.x;
    __syncthreads();  // all have looked at `last`
    if (at >= 0 && begins_run(p, at)) atomicMax(&shared.last, static_cast<int32_t>(at));
    __syncthreads();
  }
  return shared.last;
}

// ---- filters

// What the filters of a draw keep.
struct Kept {
  bool is_all;
  float cut, min_p;
  int64_t last_tie;

  // The weight of token v; 0 if it is not kept.
  __device__ float weigh(const Row& row, int64_t v) const {
    if (v >= row.V) return 0.0f;
    const float logit = row.logits[v], weight = row.weigh(logit);
    return is_all || ((logit > cut || (logit == cut && v <= last_tie)) && weight >= min_p) ? weight : 0.0f;
  }
};

// Also writes the weights of the draw's blocks, unless all is kept.
__device__ Kept filter(const Sample& p, const Row& row, int64_t i, Shared& shared) {
  const float min_p = p.min_p[i] < 1.0f ? p.min_p[i] : 1.0f, top_p = p.top_p[i];
  const bool has_top_k = p.top_k[i] > 0 && p.top_k[i] < row.V;
  Kept kept{!has_top_k && !(top_p < 1) && !(min_p > 0), -INFINITY, min_p, row.V};
  if (has_top_k || top_p < 1) {
    Cut cut{};
    if (has_top_k) cut = select(row, static_cast<uint32_t>(p.top_k[i]), kNoMass, 1.0, shared);
    if (top_p < 1) cut = select(row, ~0u, has_top_k ? share_of(cut.kept.mass, top_p) : 0, top_p, shared);
    kept.cut = cut.value;
    kept.last_tie = last_tie(row, cut, shared);
  }
  for (int64_t b = 0; b < row.num_blocks && !kept.is_all; ++b) {
    double sum = 0.0;
    if (row.sums[b].most >= kept.cut)
      for (int j = 0; j < kPerThread; ++j) sum += kept.weigh(row, b * kBlock + j * kThreads + threadIdx.x);
    sum = sum_block(sum, shared.sums);
    if (threadIdx.x == 0) p.kept[i * p.num_blocks + b] = sum;
  }
  __syncthreads();
  return kept;
}

// ---- draws

// The lowest id of the largest finite logit in the blocks begin..end; 0 without one.
__device__ int64_t argmax_of_finite(const Row& row, int64_t begin, int64_t end, Shared& shared) {
  const auto finite = [&](int64_t v) { return fabsf(row.logits[v]) < INFINITY ? row.logits[v] : -INFINITY; };
  const int64_t stop = end * kBlock < row.V ? end * kBlock : row.V;
  float most = -INFINITY;
  for (int64_t v = begin * kBlock + threadIdx.x; v < stop; v += kThreads) most = finite(v) > most ? finite(v) : most;
  most = max_block(most, shared.floats);
  if (threadIdx.x == 0) shared.first = INT32_MAX;
  __syncthreads();
  for (int64_t v = begin * kBlock + threadIdx.x; v < stop; v += kThreads)
    if (finite(v) == most) atomicMin(&shared.first, static_cast<int32_t>(v));
  __syncthreads();
  return shared.first;
}

__device__ int64_t find_peak(const Row& row, Shared& shared) {
  if (threadIdx.x == 0) shared.last = INT32_MAX;
  __syncthreads();
  for (int64_t b = threadIdx.x; b < row.num_blocks; b += kThreads)
    if (row.sums[b].most == row.peak) atomicMin(&shared.last, static_cast<int32_t>(b));
  __syncthreads();
  return argmax_of_finite(row, shared.last, shared.last + 1, shared);
}

// Of `size` weights the first with which their sum from `reached` on exceeds `target`; where rounding leaves the sum short of it,
// the last that is not 0. `reached` becomes the sum before it. Each thread takes `own` neighbours.
template <class Weigh>
__device__ int64_t invert(int64_t size, int own, double* reached, double target, const Weigh& weigh, Shared& shared) {
  if (threadIdx.x == 0) shared.first = INT32_MAX, shared.last = 0;
  __syncthreads();
  double sum = *reached;
  for (int64_t begin = threadIdx.x * own; begin - threadIdx.x * own < size; begin += own * kThreads) {
    const int64_t end = begin + own < size ? begin + own : size;
    double mine = 0.0;
    for (int64_t at = begin; at < end; ++at) mine += weigh(at);
    double up_to = sum + scan_block(mine, shared.sums) - mine;
    int64_t last = 0, hit = INT32_MAX;
    for (int64_t at = begin; at < end; ++at) {
      const double weight = weigh(at);
      up_to += weight;
      if (weight > 0) last = at;
      if (weight > 0 && up_to > target && at < hit) hit = at;
    }
    atomicMax(&shared.last, static_cast<int32_t>(last));
    atomicMin(&shared.first, static_cast<int32_t>(hit));
    sum += sum_block(mine, shared.sums);
  }
  const int64_t found = shared.first < shared.last ? shared.first : shared.last;
  double before = 0.0;
  for (int64_t at = threadIdx.x; at < found; at += kThreads) before += weigh(at);
  *reached += sum_block(before, shared.sums);
  return found;
}

// The first id whose cumulative weight exceeds uniform * total.
__device__ int64_t draw(const Sample& p, const Row& row, int64_t i, Shared& shared) {
  const Kept kept = filter(p, row, i, shared);
  const auto block_weight = [&](int64_t b) {
    if (!kept.is_all) return p.kept[i * p.num_blocks + b];
    return static_cast<double>(row.sums[b].tempered * row.weigh(row.sums[b].most));
  };
  double total = 0.0, reached = 0.0;
  for (int64_t b = threadIdx.x; b < row.num_blocks; b += kThreads) total += block_weight(b);
  const double target = uniform(p.key[i], p.position[i]) * sum_block(total, shared.sums);
  const int64_t first = invert(row.num_blocks, 1, &reached, target, block_weight, shared) * kBlock;
  const auto weigh = [&](int64_t at) { return static_cast<double>(kept.weigh(row, first + at)); };
  return first + invert(kBlock, kPerThread, &reached, target, weigh, shared);
}

// Minus the mean log-probability of the likeliest tokens, lse - the mean of their logits.
__device__ double confidence(const Row& row, double lse, Shared& shared) {
  const uint32_t count = row.V < kTopTokens ? static_cast<uint32_t>(row.V) : kTopTokens;
  const Cut cut = select(row, count, kNoMass, 1.0, shared);
  double sum = 0.0;
  for (int64_t b = 0; b < row.num_blocks; ++b) {
    if (!(row.sums[b].most > cut.value)) continue;
    float values[kPerThread];
    load_block(row.logits, row.V, b, values);
    for (int j = 0; j < kPerThread; ++j) sum += values[j] > cut.value ? values[j] : 0.0;
  }
  return lse - (sum_block(sum, shared.sums) + cut.ties * static_cast<double>(cut.value)) / count;
}

__global__ void __launch_bounds__(kThreads) draw_kernel(Sample p) {
  __shared__ Shared shared;
  const int64_t i = blockIdx.x;
  const Sums* sums = p.sums + begin_of_run(p, i, shared) * p.num_blocks;
  float peak = -FLT_MAX;
  for (int64_t b = threadIdx.x; b < p.num_blocks; b += kThreads) peak = sums[b].most > peak ? sums[b].most : peak;
  peak = max_block(peak, shared.floats);
  double total = 0.0, logit_sum = 0.0;
  for (int64_t b = threadIdx.x; b < p.num_blocks; b += kThreads) {
    total += sums[b].plain * exp2f((sums[b].most - peak) * kLog2E);
    logit_sum += sums[b].logits;
  }
  total = sum_block(total, shared.sums);
  const bool is_valid = total > 0;  // NaN is not
  const double lse = peak + log(total), scale = exp2(floor(62.0 - log2(static_cast<double>(p.V))));
  Row row{p.logits + p.row[i] * p.V, sums, p.V, p.num_blocks, peak, kLog2E, scale};
  double sure[] = {NAN, NAN};
  if (p.with_statistics && is_valid) {
    const auto V = static_cast<double>(p.V);
    sure[0] = confidence(row, lse, shared);
    sure[1] = lse - sum_block(logit_sum, shared.sums) / V - log(V);
  }
  row.factor = factor_of(p.temperature[i]);
  const int64_t token = !is_valid               ? argmax_of_finite(row, 0, p.num_blocks, shared)
                        : p.temperature[i] == 0 ? find_peak(row, shared)
                                                : draw(p, row, i, shared);
  if (threadIdx.x != 0) return;
  p.token[i] = token;
  p.logprob[i] = is_valid ? static_cast<float>(row.logits[token] - lse) : NAN;
  p.next[i] = p.next_state[(p.state[i] & kStateMask) * p.V + token];
  p.confidence[i] = static_cast<float>(sure[0]);
  p.certainty[i] = static_cast<float>(sure[1]);
}

}  // namespace
}  // namespace tts

int tts_cuda_sample(int64_t R, int64_t V, int64_t N, int64_t A, const float* logits, const int32_t* row, const int64_t* key,
                    const int64_t* position, const float* temperature, const int32_t* top_k, const float* top_p,
                    const float* min_p, const int32_t* state, const int32_t* next_state, int with_statistics, void* workspace,
                    int64_t* token, float* logprob, int32_t* next, float* confidence, float* certainty, void* stream) {
  using namespace tts;
  return guarded([&] {
    check_sizes("sample: logits", {R, V});
    check_sizes("sample: next_state", {A, V});
    check_range("sample: N", N, 0, INT32_MAX);
    if (N == 0) return;
    check_range("sample: V", V, 1, kBlock * 65535 + 1);  // blocks are the grid's y
    const int64_t num_blocks = (V + kBlock - 1) / kBlock;
    auto* sums = static_cast<Sums*>(workspace);
    auto* kept = reinterpret_cast<double*>(sums + N * num_blocks);
    const Sample p{V,           N,     num_blocks, logits,  row,   key,        position,
                   temperature, top_k, top_p,      min_p,   state, next_state, with_statistics != 0,
                   sums,        kept,  token,      logprob, next,  confidence, certainty};
    launch(sums_kernel, dim3(static_cast<unsigned>(N), static_cast<unsigned>(num_blocks)), stream, p);
    launch(draw_kernel, dim3(static_cast<unsigned>(N)), stream, p);
  });
}
