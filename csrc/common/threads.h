// The thread count of the OpenMP runtime, and scratch memory that the calling thread owns and its workers share out.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdint>
#include <memory>

#include "common/memory.h"

namespace tts {

inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Threads of the parallel region that the caller is in.
inline int team_size() {
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}

// Memory that grows to the largest request and keeps no content from one request to the next.
class Scratch {
 public:
  // `bytes` aligned to a cache line, valid until the next call; throws std::bad_alloc.
  void* take(int64_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_ = allocate(bytes);
      capacity_ = bytes;
    }
    return memory_.get();
  }

 private:
  Memory memory_;
  int64_t capacity_ = 0;
};

// The calling thread's T, made at its first use. On the heap: its address is then a plain value, not a call for each access.
template <class T>
T& thread_owned() {
  thread_local const std::unique_ptr<T> owned = std::make_unique<T>();
  return *owned;
}

}  // namespace tts
