// The Python face of kernels.h: integers become pointers, the GIL is released, an error code becomes an exception. No logic.
#include <pybind11/pybind11.h>

#include "kernels.h"

namespace py = pybind11;

namespace {

template <class T>
struct Argument {
  using Type = T;
  static T convert(T value) { return value; }
};

// A pointer travels as the integer of torch's data_ptr(), null as 0.
template <class T>
struct Argument<T*> {
  using Type = std::uintptr_t;
  static T* convert(std::uintptr_t value) { return reinterpret_cast<T*>(value); }
};

void raise(int code) {
  PyObject* type = code == TTS_INVALID_ARGUMENT ? PyExc_ValueError
                   : code == TTS_OUT_OF_MEMORY  ? PyExc_MemoryError
                                                : PyExc_RuntimeError;
  PyErr_SetString(type, tts_last_error());
  throw py::error_already_set();
}

template <class... Args>
void define(py::module_& module, const char* name, int (*launcher)(Args...)) {
  module.def(name, [launcher](typename Argument<Args>::Type... args) {
    int code;
    {
      py::gil_scoped_release release;
      code = launcher(Argument<Args>::convert(args)...);
    }
    if (code != TTS_OK) raise(code);
  });
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.attr("abi_version") = tts_abi_version();
  module.def("isa", tts_isa);
  define(module, "limit_isa", tts_limit_isa);
  define(module, "pack", tts_pack);
  define(module, "linear", tts_linear);
  define(module, "rms_norm", tts_rms_norm);
  define(module, "silu_and_mul", tts_silu_and_mul);
  define(module, "rope", tts_rope);
  define(module, "append", tts_append);
  define(module, "attend", tts_attend);
  define(module, "decoder", tts_decoder);
  define(module, "plan", tts_plan);
  define(module, "plan_pages", tts_plan_pages);
  define(module, "score", tts_score);
  define(module, "prune", tts_prune);
  define(module, "fork", tts_fork);
  define(module, "copy_tails", tts_copy_tails);
  define(module, "sample", tts_sample);
  define(module, "ceiling", tts_ceiling);
#ifdef TTS_CUDA
  define(module, "cuda_prune", tts_cuda_prune);
  define(module, "cuda_score", tts_cuda_score);
  define(module, "cuda_copy_tails", tts_cuda_copy_tails);
  define(module, "cuda_sample", tts_cuda_sample);
#endif
}
