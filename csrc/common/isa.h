// Which instruction sets the kernels use: what the machine has, or less if the caller limited it.
#pragma once

#include "kernels.h"

namespace tts {

// A value of TTS_ISA_*, in ascending order of what it includes.
int isa();

// Dot products of bfloat16 pairs: with less, bfloat16 is widened and computed in float32.
inline bool has_bf16_tiles() { return isa() >= TTS_ISA_AMX_BF16; }
inline bool has_bf16_dot() { return isa() >= TTS_ISA_AVX512_BF16; }

}  // namespace tts
