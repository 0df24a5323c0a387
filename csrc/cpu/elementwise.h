// What rms_norm, silu_and_mul, rope and decoder share: blocks of elements, rounding to the storage type, and what is done with
// two rows element by element.
#pragma once

#include "common/simd.h"

namespace tts {
namespace {

// 32 elements as two vectors, in the order that is cheapest for the type: bfloat16 is cut into its even and its odd elements by a
// shift and a mask, a third of the instructions of widening it in order.
struct Block {
  F32x16 first, second;
};
constexpr int64_t kBlockLanes = 2 * kLanes;

template <class T>
TTS_INLINE Block load_block(const T* from) {
  return {load<kLanes>(from), load<kLanes>(from + kLanes)};
}
TTS_INLINE Block load_block(const BF16* from) {
  U32x16 pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  return {bit_cast<F32x16>(pairs << 16), bit_cast<F32x16>(pairs & 0xFFFF0000u)};
}

// The first `count` <= 32 elements, 0 in the others.
template <class T>
TTS_INLINE Block load_part(const T* from, int64_t count) {
  if (count == kBlockLanes) return load_block(from);
  T padded[kBlockLanes] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
  return load_block(padded);
}

template <class T>
TTS_INLINE void store_block(T* to, const Block& block) {
  store(to, block.first);
  store(to + kLanes, block.second);
}
TTS_INLINE void store_block(BF16* to, const Block& block) {
  const U32x16 even = round_bf16<F32x16, U32x16>(block.first), odd = round_bf16<F32x16, U32x16>(block.second);
  const U32x16 pairs = even >> 16 | (odd & 0xFFFF0000u);
  std::memcpy(to, &pairs, sizeof(pairs));
}

// The first `count` <= 32 elements.
template <class T>
TTS_INLINE void store_part(T* to, const Block& block, int64_t count) {
  if (count == kBlockLanes) return store_block(to, block);
  T padded[kBlockLanes];
  store_block(padded, block);
  std::memcpy(to, padded, static_cast<size_t>(count) * sizeof(T));
}

// `value` rounded to what the storage type holds.
TTS_INLINE F32x16 rounded(F32x16 value, float) { return value; }
TTS_INLINE F32x16 rounded(F32x16 value, F16) { return widen_f16<F32x16>(narrow_f16<F32x16, U32x16>(value)); }
TTS_INLINE F32x16 rounded(F32x16 value, BF16) { return bit_cast<F32x16>(round_bf16<F32x16, U32x16>(value) & 0xFFFF0000u); }

// out[i] = f(a[i], b[i])
template <class T, class Function>
TTS_INLINE void combine(const T* a, const T* b, int64_t count, T* out, Function&& f) {
  const auto both = [&](const Block& one, const Block& other)
                        TTS_INLINE_LAMBDA { return Block{f(one.first, other.first), f(one.second, other.second)}; };
  int64_t i = 0;
  for (; i + kBlockLanes <= count; i += kBlockLanes) store_block(out + i, both(load_block(a + i), load_block(b + i)));
  if (i < count) store_part(out + i, both(load_part(a + i, count - i), load_part(b + i, count - i)), count - i);
}

// out[i] = f(a[i]) * b[i], f(a[i]) rounded first
template <class T, class Function>
TTS_INLINE void map_and_mul(const T* a, const T* b, int64_t count, T* out, Function&& f) {
  combine(a, b, count, out, [&](F32x16 from, F32x16 by) TTS_INLINE_LAMBDA { return rounded(f(from), T{}) * by; });
}

}  // namespace
}  // namespace tts
