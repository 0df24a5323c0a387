"""The C++ module `tts_kernels._native`; everything else about the build is in pyproject.toml.

Neither torch nor a GPU is needed to build. Without OpenMP the module runs on one thread. CUDA sources are compiled where nvcc is.
"""

import glob
import os
import re
import shutil
import subprocess
import tempfile

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

FLAGS = ["-O3", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi"]
CUDA_FLAGS = ["-O3", "-std=c++17", "--compiler-options=-fPIC", "--cudart=static", "-Icsrc"]
CUDA_ARCHITECTURES = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]


class BuildWithHeader(build_py):
    """Installs the C ABI's header as tts_kernels/include/kernels.h."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = os.path.join(self.build_lib, "tts_kernels", "include")
            self.mkpath(folder)
            self.copy_file("csrc/kernels.h", folder)


class BuildNative(build_ext):
    def build_extension(self, ext):
        if self._has_openmp():
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        cuda_sources = sorted(glob.glob("csrc/cuda/*.cu"))
        nvcc = shutil.which("nvcc")
        if cuda_sources and nvcc:
            self._add_cuda(ext, nvcc, cuda_sources)
        super().build_extension(ext)

    def _has_openmp(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.cpp")
            with open(source, "w") as file:
                file.write("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([source], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, os.path.join(folder, "probe"), extra_postargs=["-fopenmp"])
            except Exception as error:  # distutils' errors have no common public base
                print(f"no OpenMP, the kernels will run on one thread: {error}")
                return False
        return True

    def _add_cuda(self, ext, nvcc: str, sources: list[str]) -> None:
        os.makedirs(self.build_temp, exist_ok=True)
        for source in sources:
            target = os.path.join(self.build_temp, os.path.basename(source) + ".o")
            subprocess.check_call([nvcc, *CUDA_FLAGS, *CUDA_ARCHITECTURES, "-c", source, "-o", target])
            ext.extra_objects.append(target)
        ext.define_macros.append(("TTS_CUDA", "1"))
        says = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=True).stderr
        ext.library_dirs += re.findall(r'"-L([^"]+)"', says)
        ext.libraries += ["cudart_static", "rt", "dl", "pthread"]


native = Pybind11Extension(
    "tts_kernels._native",
    sorted(["csrc/bindings.cpp", *glob.glob("csrc/common/*.cpp"), *glob.glob("csrc/cpu/*.cpp")]),
    depends=sorted(glob.glob("csrc/**/*.h", recursive=True)),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=FLAGS,
)

with ParallelCompile(default=0):
    setup(ext_modules=[native], cmdclass={"build_ext": BuildNative, "build_py": BuildWithHeader})
