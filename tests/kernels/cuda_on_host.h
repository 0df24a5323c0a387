// CUDA's names on the CPU, for the kernels of csrc/cuda: each thread of a block is a fiber, and a barrier is where all of them
// have arrived. Blocks run one after the other. It shows that a kernel computes what it should; of speed, of memory that the
// hardware orders differently and of alignment it says nothing.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 blockIdx, threadIdx;

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline _Float16 __ushort_as_half(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __half2float(_Float16 x) { return static_cast<float>(x); }
template <class T>
T exchange(T* at, T value) {
  const T before = *at;
  *at = value;
  return before;
}
template <class T>
T atomicAdd(T* to, T value) {
  return exchange(to, *to + value);
}
inline int atomicMin(int* to, int value) { return exchange(to, value < *to ? value : *to); }
inline int atomicMax(int* to, int value) { return exchange(to, value > *to ? value : *to); }

namespace host {

constexpr size_t kStack = 64 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool is_done = false;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline const std::function<void()>* body;

inline void enter() {
  (*body)();
  fibers[threadIdx.x].is_done = true;
}

// All threads to their next barrier, or to their end, in turn, until all have ended.
inline void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[static_cast<size_t>(i)];
    fiber.is_done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool is_running = true; is_running;) {
    is_running = false;
    for (int i = 0; i < threads; ++i) {
      threadIdx.x = static_cast<unsigned>(i);
      Fiber& fiber = fibers[static_cast<size_t>(i)];
      if (!fiber.is_done) swapcontext(&scheduler, &fiber.context);
      is_running |= !fiber.is_done;
    }
  }
}

}  // namespace host

inline void __syncthreads() { swapcontext(&host::fibers[threadIdx.x].context, &host::scheduler); }

inline void run_on_host(dim3 grid, int threads, const std::function<void()>& body) {
  host::fibers.resize(static_cast<size_t>(threads));
  host::body = &body;
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) host::run_block(threads);
}
