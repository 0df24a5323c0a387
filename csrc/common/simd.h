// Vectors of float32 lanes over float32, float16 and bfloat16 storage, in portable vector extensions, and one copy of a kernel
// per instruction set (AVX-512, AVX2, baseline), of which the machine's is used. Elsewhere there is one copy for the target.
//
// TTS_CLONES marks a function of sixteen lanes, which narrower machines take in parts. Kernels that must keep many sums in
// registers are written for W lanes and declared by TTS_PER_WIDTH. All that they call is TTS_INLINE.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "kernels.h"

#define TTS_INLINE inline __attribute__((always_inline))
#define TTS_INLINE_LAMBDA __attribute__((always_inline))
#if defined(__x86_64__) && defined(__gnu_linux__) && (defined(__clang__) ? __clang_major__ >= 17 : __GNUC__ >= 12)
#define TTS_X86_LEVELS 1
#define TTS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// void name(parameters), which runs name_for<W>(arguments) with the W of the machine.
#define TTS_PER_WIDTH(name, parameters, arguments)                                                             \
  __attribute__((target("arch=x86-64-v4"))) void name##_for_16 parameters { name##_for<16> arguments; }        \
  __attribute__((target("arch=x86-64-v3"))) void name##_for_8 parameters { name##_for<8> arguments; }          \
  void name##_for_4 parameters { name##_for<4> arguments; }                                                    \
  void name parameters {                                                                                       \
    (isa() >= TTS_ISA_AVX512 ? name##_for_16 : isa() >= TTS_ISA_AVX2 ? name##_for_8 : name##_for_4) arguments; \
  }
#else
#define TTS_CLONES
#define TTS_PER_WIDTH(name, parameters, arguments) \
  void name parameters { name##_for<4> arguments; }
#endif

namespace tts {

constexpr int kLanes = 16;

typedef float F32x16 __attribute__((vector_size(64)));
typedef double F64x8 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef float F32x8 __attribute__((vector_size(32)));
typedef float F32x4 __attribute__((vector_size(16)));
typedef uint32_t U32x4 __attribute__((vector_size(16)));

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

template <class To, class From>
TTS_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// The conversions work on one lane (uint32_t, float) and on vectors (U32x16, F32x16) alike: a half sits in the low 16 bits.

// Widening is exact. Both candidate results are computed without a branch (Maratyszka's FP16): `normal` rescales the exponent by
// a product, `subnormal` lets the subtraction of a magic bias normalise.
template <class F, class U>
TTS_INLINE F widen_f16(U half) {
  const U shifted = half << 16, twice = shifted + shifted;
  const F normal = bit_cast<F>((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const F subnormal = bit_cast<F>((twice >> 17) | (126u << 23)) - 0.5f;
  return bit_cast<F>((shifted & 0x80000000u) | (twice < (1u << 27) ? bit_cast<U>(subnormal) : bit_cast<U>(normal)));
}

// Rounds to nearest even; NaN becomes the quiet NaN, too large becomes infinite.
template <class F, class U>
TTS_INLINE U narrow_f16(F value) {
  const U word = bit_cast<U>(value), twice = word + word, magnitude = word & 0x7FFFFFFFu;
  const F scaled = (bit_cast<F>(magnitude) * 0x1.0p+112f) * 0x1.0p-110f;
  const U exponent = twice & 0xFF000000u;
  const U bias = exponent < 0x71000000u ? 0x71000000u + (exponent & 0u) : exponent;
  const U rounded = bit_cast<U>(bit_cast<F>((bias >> 1) + 0x07800000u) + scaled);
  const U result = ((rounded >> 13) & 0x7C00u) + (rounded & 0x0FFFu);
  return (word & 0x80000000u) >> 16 | (twice > 0xFF000000u ? 0x7E00u + (word & 0u) : result);
}

// The result is the high half; the low half is of no meaning.
template <class F, class U>
TTS_INLINE U round_bf16(F value) {
  const U word = bit_cast<U>(value);
  const U rounded = word + 0x7FFFu + ((word >> 16) & 1u);
  return word + word > 0xFF000000u ? 0x7FC00000u + (word & 0u) : rounded;
}

template <class F, class U>
TTS_INLINE U narrow_bf16(F value) {
  return round_bf16<F, U>(value) >> 16;
}

// A vector of W float32 lanes, its unsigned twin, its lanes two by two, and W halves.
template <int W>
struct Vector;
template <>
struct Vector<4> {
  using Float = F32x4;
  using Bits = U32x4;
  typedef uint64_t Pairs __attribute__((vector_size(16)));
  typedef uint16_t Half __attribute__((vector_size(8)));
};
template <>
struct Vector<8> {
  using Float = F32x8;
  typedef uint64_t Pairs __attribute__((vector_size(32)));
};
template <>
struct Vector<16> {
  using Float = F32x16;
  using Bits = U32x16;
  typedef uint64_t Pairs __attribute__((vector_size(64)));
  typedef uint16_t Half __attribute__((vector_size(32)));
};

// W consecutive elements as float32, from any address that is aligned to the element.
template <int W>
TTS_INLINE typename Vector<W>::Float load(const float* from) {
  typename Vector<W>::Float to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

template <int W>
TTS_INLINE typename Vector<W>::Bits load_half(const void* from) {
  typename Vector<W>::Half half;
  std::memcpy(&half, from, sizeof(half));
  return __builtin_convertvector(half, typename Vector<W>::Bits);
}

template <int W>
TTS_INLINE typename Vector<W>::Float load(const F16* from) {
  return widen_f16<typename Vector<W>::Float>(load_half<W>(from));
}

template <int W>
TTS_INLINE typename Vector<W>::Float load(const BF16* from) {
  return bit_cast<typename Vector<W>::Float>(load_half<W>(from) << 16);
}

TTS_INLINE float load1(const float* from) { return *from; }
TTS_INLINE float load1(const F16* from) { return widen_f16<float>(uint32_t{from->bits}); }
TTS_INLINE float load1(const BF16* from) { return bit_cast<float>(uint32_t{from->bits} << 16); }

template <class Float>
TTS_INLINE void store(float* to, Float value) {
  std::memcpy(to, &value, sizeof(value));
}

TTS_INLINE void store_half(void* to, U32x16 bits) {
  const auto half = __builtin_convertvector(bits, Vector<16>::Half);
  std::memcpy(to, &half, sizeof(half));
}

TTS_INLINE void store(F16* to, F32x16 value) { store_half(to, narrow_f16<F32x16, U32x16>(value)); }
TTS_INLINE void store(BF16* to, F32x16 value) { store_half(to, narrow_bf16<F32x16, U32x16>(value)); }

// The first `count` <= 16 lanes; the others are 0 when loaded and not written when stored.
template <class T>
TTS_INLINE F32x16 load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load<kLanes>(from);
  T padded[kLanes] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
  return load<kLanes>(padded);
}

template <class T>
TTS_INLINE void store_some(T* to, F32x16 value, int64_t count) {
  if (count >= kLanes) return store(to, value);
  T padded[kLanes];
  store(padded, value);
  std::memcpy(to, padded, static_cast<size_t>(count) * sizeof(T));
}

TTS_INLINE F32x16 splat(float value) { return value - F32x16{}; }

// The first `count` lanes of `value`, `rest` in the others.
TTS_INLINE F32x16 keep_first(F32x16 value, int64_t count, float rest) {
  const I32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane < static_cast<int32_t>(count) ? value : splat(rest);
}

// (from[0], from[1]) over and over.
template <int W>
TTS_INLINE typename Vector<W>::Float load_pair(const float* from) {
  uint64_t pair;
  std::memcpy(&pair, from, sizeof(pair));
  return bit_cast<typename Vector<W>::Float>(pair | typename Vector<W>::Pairs{});
}

// The sums of neighbours: (a0 + a1, a2 + a3, ..., b0 + b1, ...).
TTS_INLINE F32x16 sum_pairs(F32x16 a, F32x16 b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

TTS_INLINE F32x16 larger(F32x16 a, F32x16 b) { return a > b ? a : b; }

// Lane i meets lane i + 8, then i + 4, i + 2, i + 1.
TTS_INLINE float sum_lanes(F32x16 value) {
  value += __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  value += __builtin_shufflevector(value, value, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  value += __builtin_shufflevector(value, value, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return value[0] + value[1];
}

TTS_INLINE float max_lanes(F32x16 value) {
  value = larger(value, __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  value = larger(value, __builtin_shufflevector(value, value, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  value = larger(value, __builtin_shufflevector(value, value, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return value[0] > value[1] ? value[0] : value[1];
}

// 2^f for f in [-.5, .5]: the minimax polynomial (2e-9).
TTS_INLINE F32x16 exp2_fraction(F32x16 f) {
  F32x16 poly = f * 0x1.41fbc6p-13f + 0x1.5f3e54p-10f;
  poly = poly * f + 0x1.3b2d4cp-7f;
  poly = poly * f + 0x1.c6aee8p-5f;
  poly = poly * f + 0x1.ebfbdcp-3f;
  poly = poly * f + 0x1.62e430p-1f;
  return poly * f + 1.0f;
}

// 2^x for x <= 127 within 2 ulp, 0 below -126, NaN for NaN.
TTS_INLINE F32x16 exp2(F32x16 x) {
  const float kShift = 0x1.8p23f;  // adding it leaves round(x) in the low bits
  const F32x16 shifted = x + kShift, f = x - (shifted - kShift);
  const F32x16 power = bit_cast<F32x16>((bit_cast<U32x16>(shifted) + 127u) << 23);
  return x < -126.0f ? F32x16{} : exp2_fraction(f) * power;
}

// The same 4 elements of 4 rows, or of 8 rows as two halves: rows 0..3 low, rows 4..7 high.
template <class T>
TTS_INLINE F32x4 gather4(const T* const* row, int64_t at, F32x4) {
  return load<4>(*row + at);
}
template <class T>
TTS_INLINE F32x8 gather4(const T* const* row, int64_t at, F32x8) {
  return __builtin_shufflevector(load<4>(row[0] + at), load<4>(row[4] + at), 0, 1, 2, 3, 4, 5, 6, 7);
}

TTS_INLINE void interleave(F32x4 a, F32x4 b, F32x4* low, F32x4* high) {
  *low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  *high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
TTS_INLINE void interleave(F32x8 a, F32x8 b, F32x8* low, F32x8* high) {
  *low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
  *high = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}

TTS_INLINE void interleave_pairs(F32x4 a, F32x4 b, F32x4* low, F32x4* high) {
  *low = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  *high = __builtin_shufflevector(a, b, 2, 3, 6, 7);
}
TTS_INLINE void interleave_pairs(F32x8 a, F32x8 b, F32x8* low, F32x8* high) {
  *low = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
  *high = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}

#if defined(__x86_64__)
using Columns = F32x8;
#else
using Columns = F32x4;
#endif
constexpr int64_t kTransposedRows = sizeof(Columns) / sizeof(float);

// Writes `num_rows` <= 16 rows of `count` elements as columns: to[i * stride + r] = rows[r][i]. `num_rows` is a multiple of
// kTransposedRows; the lanes of the columns behind them are left as they are.
template <class T>
TTS_INLINE void transpose_rows(const T* const* rows, int64_t num_rows, int64_t count, float* to, int64_t stride) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int64_t r = 0; r < num_rows; r += kTransposedRows) {
      Columns quad[4], mixed[4], column[4];
      for (int64_t j = 0; j < 4; ++j) quad[j] = gather4(rows + r + j, i, Columns{});
      interleave(quad[0], quad[1], &mixed[0], &mixed[1]);
      interleave(quad[2], quad[3], &mixed[2], &mixed[3]);
      interleave_pairs(mixed[0], mixed[2], &column[0], &column[1]);
      interleave_pairs(mixed[1], mixed[3], &column[2], &column[3]);
      for (int64_t j = 0; j < 4; ++j) std::memcpy(to + (i + j) * stride + r, &column[j], sizeof(Columns));
    }
  for (; i < count; ++i)
    for (int64_t r = 0; r < num_rows; ++r) to[i * stride + r] = load1(rows[r] + i);
}

// Calls body(T{}) with the storage type that `dtype` names; false if it names none.
template <class Body>
TTS_INLINE bool with_dtype(int dtype, Body&& body) {
  switch (dtype) {
    case TTS_F32: body(float{}); return true;
    case TTS_F16: body(F16{}); return true;
    case TTS_BF16: body(BF16{}); return true;
    default: return false;
  }
}

inline int64_t element_size(int dtype) { return dtype == TTS_F32 ? 4 : 2; }

}  // namespace tts
