// Philox4x32-10, a counter-based generator (Salmon et al., SC 2011): a draw is a function of (key, counter) alone.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TTS_ON_GPU_TOO __host__ __device__
#else
#define TTS_ON_GPU_TOO
#endif

namespace tts {

// Uniform in (0, 1), 24 bits: word 0 under `key` at `counter`.
TTS_ON_GPU_TOO inline double uniform(int64_t key, int64_t counter) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(static_cast<uint64_t>(key) >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(static_cast<uint64_t>(counter) >> 32), c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round, k0 += kWeyl0, k1 += kWeyl1) {
    const uint64_t product0 = kMultiplier0 * c0, product1 = kMultiplier1 * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
  }
  return ((c0 >> 8) + 0.5) * 0x1.0p-24;
}

}  // namespace tts
