// Memory for what is large: on huge pages where the system has some, because rows of a few kilobytes lie in a page of 4 KB each.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tts {

constexpr int64_t kHugePage = int64_t{2} << 20;

struct Free {
  std::align_val_t alignment{64};
  void operator()(void* memory) const { ::operator delete(memory, alignment); }
};
using Memory = std::unique_ptr<void, Free>;

// `bytes` aligned to a cache line, from a huge page on to one of those; throws std::bad_alloc.
inline Memory allocate(int64_t bytes) {
  const Free free{std::align_val_t{bytes < kHugePage ? size_t{64} : size_t{kHugePage}}};
  Memory memory(::operator new(static_cast<size_t>(bytes), free.alignment), free);
#ifdef MADV_HUGEPAGE
  if (bytes >= kHugePage) madvise(memory.get(), static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace tts
