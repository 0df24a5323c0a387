// What all CUDA kernels share: a checked launch, sums and scans of a block, elements as float. Without nvcc, which is how the
// tests run these kernels on a machine without a GPU, whoever includes this has declared CUDA's names before.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace tts {

#ifdef TTS_THREADS  // the tests run fewer: on the CPU a barrier costs a switch of context for each of them
constexpr int kThreads = TTS_THREADS;
#else
constexpr int kThreads = 256;
#endif

// Starts `kernel` on `stream` and checks that it could be started; what it does later is reported by the stream.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, void* stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
#ifdef __CUDACC__
  kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("a CUDA kernel did not start: ") + cudaGetErrorString(error));
#else
  (void)stream;
  run_on_host(grid, kThreads, [&] { kernel(arguments...); });
#endif
}

// The sum of the values of threads 0 to this one, in a fixed order. `shared` has room for kThreads; all threads must call.
template <class T>
__device__ T scan_block(T value, T* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = value;
  __syncthreads();
  for (int distance = 1; distance < kThreads; distance *= 2) {
    const T before = thread >= distance ? shared[thread - distance] : T{};
    __syncthreads();
    shared[thread] += before;
    __syncthreads();
  }
  value = shared[thread];
  __syncthreads();
  return value;
}

// The sum of all threads' values, in every thread.
template <class T>
__device__ T sum_block(T value, T* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = value;
  __syncthreads();
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    if (thread < distance) shared[thread] += shared[thread + distance];
    __syncthreads();
  }
  value = shared[0];
  __syncthreads();
  return value;
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }

}  // namespace tts
