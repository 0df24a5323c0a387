#include "common/isa.h"

#include <algorithm>
#include <atomic>

#include "common/check.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tts {
namespace {

#if defined(__x86_64__) && defined(__linux__)
// Linux hands out the 8 KB of tile state on request only; threads made later inherit the permission.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

int detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("x86-64-v3")) return TTS_ISA_BASE;
  if (!__builtin_cpu_supports("x86-64-v4")) return TTS_ISA_AVX2;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool has_dot = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
  if (!has_dot) return TTS_ISA_AVX512;
  const bool has_tiles = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1) && (edx >> 24 & 1);
  return has_tiles && may_use_tiles() ? TTS_ISA_AMX_BF16 : TTS_ISA_AVX512_BF16;
}
#else
int detect() { return TTS_ISA_BASE; }
#endif

int detected() {
  static const int found = detect();
  return found;
}

std::atomic<int> limit{TTS_ISA_AMX_BF16};

}  // namespace

int isa() { return std::min(detected(), limit.load(std::memory_order_relaxed)); }

}  // namespace tts

int tts_isa(void) { return tts::isa(); }

int tts_limit_isa(int isa) {
  return tts::guarded([&] {
    tts::check_range("limit_isa: isa", isa, TTS_ISA_BASE, TTS_ISA_AMX_BF16 + 1);
    tts::limit.store(isa, std::memory_order_relaxed);
  });
}
