// A row of logits as the draws of sample see it, and the selection of its largest. Of sample.cu alone.
//
// A logit is selected by three digits of its order, from the highest: a pass over the row for each counts and weighs the logits
// that share the digits found so far. Blocks whose largest logit lies below those are passed over.
#pragma once

#include <cmath>

#include "cuda/launch.h"

namespace tts {
namespace {

constexpr int kPerThread = 16;
constexpr int64_t kBlock = kPerThread * kThreads;  // logits that a block of threads takes at once
constexpr int kDigit = 11, kBins = 1 << kDigit;    // of the 32 bits of a logit's order

// Of one block of logits; the weights e^(logit - most) and e^((logit - most) / temperature).
struct alignas(16) Sums {
  float most, plain, tempered, logits;
};

// How many tokens, and what they weigh as integers: their sum does not depend on its order.
struct Part {
  uint32_t count;
  unsigned long long mass;

  __device__ Part& operator+=(const Part& other) {
    count += other.count;
    mass += other.mass;
    return *this;
  }
};

// The last token that a filter keeps, by descending logit and then ascending id: all above `value` and the first `ties` equal to
// it.
struct Cut {
  float value;
  uint32_t ties, equal;
  Part kept;
};

struct Shared {
  uint32_t counts[kBins], low_masses[kBins], high_masses[kBins];
  Part parts[kThreads], above;
  double sums[kThreads];
  float floats[kThreads];
  int32_t ints[kThreads], bin, first, last;

  // One more token. An atomic on 64 bits of shared memory is a loop; two on 32, with a carry where the low word wraps, give the
  // same sum in any order.
  __device__ void add(uint32_t bin, unsigned long long mass) {
    atomicAdd(&counts[bin], 1u);
    if (mass == 0) return;
    const uint32_t low = static_cast<uint32_t>(mass), before = atomicAdd(&low_masses[bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before);
    if (high > 0) atomicAdd(&high_masses[bin], high);
  }

  __device__ Part part(int bin) const {
    return {counts[bin], static_cast<unsigned long long>(high_masses[bin]) << 32 | low_masses[bin]};
  }
};

struct Row {
  const float* logits;
  const Sums* sums;
  int64_t V, num_blocks;
  float peak, factor;
  double scale;  // of a weight as an integer: all V together stay below 2^62

  __device__ float weigh(float logit) const { return exp2f((logit - peak) * factor); }
  __device__ unsigned long long mass(float logit) const { return static_cast<unsigned long long>(weigh(logit) * scale); }
};

__device__ float max_block(float value, float* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = value;
  __syncthreads();
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    if (thread < distance && shared[thread + distance] > shared[thread]) shared[thread] = shared[thread + distance];
    __syncthreads();
  }
  value = shared[0];
  __syncthreads();
  return value;
}

// Unsigned integers in the order of the floats.
__device__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);  // -0 ties with +0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float from_ordered(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }

// This thread's logits of block b, and -inf beyond the row: `kThreads` apart, so that all threads read one range together.
__device__ void load_block(const float* logits, int64_t V, int64_t b, float* values) {
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int64_t at = b * kBlock + j * kThreads + threadIdx.x;
    values[j] = at < V ? logits[at] : -INFINITY;
  }
}

// Counts by digit the logits whose higher digits are `prefix`.
__device__ void fill_bins(const Row& row, uint32_t prefix, int shift, int width, Shared& shared) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
    shared.counts[bin] = shared.low_masses[bin] = shared.high_masses[bin] = 0;
  __syncthreads();
  for (int64_t b = 0; b < row.num_blocks; ++b) {
    if (static_cast<uint64_t>(ordered(row.sums[b].most)) >> (shift + width) < prefix) continue;
    float values[kPerThread];
    load_block(row.logits, row.V, b, values);
    for (int j = 0; j < kPerThread; ++j) {
      const uint32_t key = ordered(values[j]), bin = (key >> shift) & ((1u << width) - 1);
      if (b * kBlock + j * kThreads + threadIdx.x >= row.V || static_cast<uint64_t>(key) >> (shift + width) != prefix) continue;
      shared.add(bin, row.mass(values[j]));
    }
  }
  __syncthreads();
}

// The mass before which `share` of `total` lies: at least that of the first token.
__device__ unsigned long long share_of(unsigned long long total, double share) {
  const double mass = ceil(share * static_cast<double>(total));
  return mass > 1.0 ? static_cast<unsigned long long>(mass) : 1;
}

// Finds the bin in which, from the highest on and `above` included, there are `count` tokens or the mass `mass`: its number and
// what lies above it go to `shared`. Without a mass it is `share` of all.
__device__ void find_bin(Part above, uint32_t count, unsigned long long* mass, double share, Shared& shared) {
  constexpr int kOwn = kBins / kThreads;
  const int highest = kBins - 1 - static_cast<int>(threadIdx.x) * kOwn;
  Part own{};
  for (int bin = highest; bin > highest - kOwn; --bin) own += shared.part(bin);
  Part reached = above;
  reached += scan_block(own, shared.parts);
  if (*mass == 0) *mass = share_of(sum_block(own, shared.parts).mass, share);
  Part before{reached.count - own.count, reached.mass - own.mass};
  const auto is_enough = [&](const Part& part) { return part.count >= count || part.mass >= *mass; };
  if (!is_enough(before) && is_enough(reached)) {
    for (int bin = highest;; --bin) {
      Part with = before;
      with += shared.part(bin);
      if (is_enough(with)) {
        shared.bin = bin;
        shared.above = before;
        break;
      }
      before = with;
    }
  }
  __syncthreads();
}

// Keeps the first and those before which lie fewer than `count` tokens and less than `mass`, or `share` of all if that is 0.
__device__ Cut select(const Row& row, uint32_t count, unsigned long long mass, double share, Shared& shared) {
  uint32_t prefix = 0;
  Part above{};
  for (int left = 32; left > 0;) {
    const int width = left < kDigit ? left : kDigit;
    left -= width;
    fill_bins(row, prefix, left, width, shared);
    find_bin(above, count, &mass, share, shared);
    prefix = prefix << width | static_cast<uint32_t>(shared.bin);
    above = shared.above;
  }
  const auto [equal, mass_of_all] = shared.part(shared.bin);
  const unsigned long long each = mass_of_all / equal;
  unsigned long long ties = count - above.count;
  if (each > 0 && (mass - above.mass + each - 1) / each < ties) ties = (mass - above.mass + each - 1) / each;
  __syncthreads();  // all have read the bins
  const auto kept = static_cast<uint32_t>(ties < equal ? ties : equal);
  return {from_ordered(prefix), kept, equal, {above.count + kept, above.mass + kept * each}};
}

// The id of the last tie that is kept.
__device__ int64_t last_tie(const Row& row, const Cut& cut, Shared& shared) {
  if (cut.ties == cut.equal) return row.V;
  int32_t seen = 0;
  if (threadIdx.x == 0) shared.last = -1;
  for (int64_t b = 0; b < row.num_blocks && seen < static_cast<int32_t>(cut.ties); ++b) {
    const int64_t begin = b * kBlock + threadIdx.x * kPerThread;
    int32_t own = 0;
    for (int64_t v = begin; v < begin + kPerThread && v < row.V; ++v) own += row.logits[v] == cut.value;
    int32_t number = seen + scan_block(own, shared.ints) - own;
    for (int64_t v = begin; v < begin + kPerThread && v < row.V; ++v)
      if (row.logits[v] == cut.value && ++number == static_cast<int32_t>(cut.ties)) shared.last = static_cast<int32_t>(v);
    seen += sum_block(own, shared.ints);
  }
  return shared.last;
}

}  // namespace
}  // namespace tts
