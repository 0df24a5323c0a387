#include <cstdio>

#include "common/check.h"

namespace {
thread_local char last_error[512] = "";
}

namespace tts {
void set_last_error(const char* message) noexcept { std::snprintf(last_error, sizeof(last_error), "%s", message); }
}  // namespace tts

const char* tts_last_error(void) { return last_error; }

int tts_abi_version(void) { return TTS_ABI_VERSION; }
