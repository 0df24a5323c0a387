// Errors inside the library are exceptions; `guarded` turns them into the code and message of the C ABI.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace tts {

void set_last_error(const char* message) noexcept;

// Runs `body` as the whole of a launcher. Nothing may throw inside a parallel region: allocate and check before it.
template <class Body>
int guarded(Body&& body) noexcept {
  try {
    body();
    return TTS_OK;
  } catch (const std::invalid_argument& error) {
    set_last_error(error.what());
    return TTS_INVALID_ARGUMENT;
  } catch (const std::bad_alloc&) {
    set_last_error("out of memory");
    return TTS_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return TTS_INTERNAL_ERROR;
  }
}

inline void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

[[noreturn]] inline void out_of_range(const char* what, int64_t value, int64_t low, int64_t high) {
  throw std::invalid_argument(std::string(what) + " must be in [" + std::to_string(low) + ", " + std::to_string(high) +
                              "), got " + std::to_string(value));
}

inline void check_range(const char* what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value >= high) out_of_range(what, value, low, high);
}

template <class Int>
void check_values(const char* what, const Int* values, int64_t count, int64_t low, int64_t high) {
  for (int64_t i = 0; i < count; ++i) check_range(what, values[i], low, high);
}

// Offsets of segments: from 0, never falling, at most `end`.
inline void check_indptr(const char* what, const int32_t* indptr, int64_t segments, int64_t end) {
  check_range(what, indptr[0], 0, 1);
  for (int64_t i = 0; i < segments; ++i) check_range(what, indptr[i + 1], indptr[i], end + 1);
}

// The sizes of a tensor: none negative, and their product in bytes fits 64 bits.
inline void check_sizes(const char* what, std::initializer_list<int64_t> sizes) {
  int64_t bytes = 8;
  for (int64_t size : sizes) {
    check_range(what, size, 0, INT64_MAX);
    bytes = size != 0 && bytes > INT64_MAX / size ? INT64_MAX : bytes * size;
  }
  if (bytes == INT64_MAX) throw std::invalid_argument(std::string(what) + " is too large: its bytes do not fit 64 bits");
}

}  // namespace tts
