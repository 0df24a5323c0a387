// silu_and_mul: out[m,f] = silu(x[m,f]) * x[m,F+f] with silu(g) = g / (1 + exp(-g)), the first factor rounded to T.
//
// A task is a range of rows: it reads 2*F elements of a row and writes F. Invariant: every element goes through the same
// operations of one lane, so its bits do not depend on where it stands.
#include "cpu/silu_and_mul.h"

#include <algorithm>

#include "common/check.h"
#include "common/threads.h"

namespace tts {
namespace {

constexpr int64_t kParallelWork = 1 << 12;  // elements of out below which a second thread costs more than it saves

template <class T>
struct SiluAndMul {
  int64_t M, F, x_stride;
  const T* x;
  T* out;
};

template <class T>
TTS_CLONES void activate_rows(const SiluAndMul<T>& p, int64_t first, int64_t last) {
  for (int64_t m = first; m < last; ++m) {
    const T* gate = p.x + m * p.x_stride;
    silu_and_mul(gate, gate + p.F, p.F, p.out + m * p.F);
  }
}

template <class T>
void activate(const SiluAndMul<T>& p) {
  const int64_t tasks = p.M * p.F > kParallelWork ? std::min<int64_t>(max_threads(), p.M) : 1;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(tasks)) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) activate_rows(p, p.M * task / tasks, p.M * (task + 1) / tasks);
}

}  // namespace
}  // namespace tts

int tts_silu_and_mul(int dtype, int64_t M, int64_t F, const void* x, int64_t x_stride, void* out) {
  using namespace tts;
  return guarded([&] {
    check_range("silu_and_mul: dtype", dtype, TTS_F32, TTS_BF16 + 1);
    check_sizes("silu_and_mul: x", {M, 2, std::max(x_stride, F)});
    with_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      activate(SiluAndMul<T>{M, F, x_stride, static_cast<const T*>(x), static_cast<T*>(out)});
    });
  });
}
