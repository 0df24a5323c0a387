// Sizes in whole blocks.
#pragma once

#include <cstdint>

namespace tts {

inline int64_t in_blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

inline int64_t round_up(int64_t size, int64_t block) { return in_blocks(size, block) * block; }

}  // namespace tts
