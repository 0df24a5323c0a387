"""The C library `libtts_kernels` and the Python module `tts_kernels._native` that links to it; all else is in pyproject.toml.

Both lie in the package, where the module finds the library by a path relative to its own. Neither torch nor a GPU is needed to
build. Without OpenMP the kernels run on one thread. CUDA sources are compiled where nvcc is.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

IS_MAC = sys.platform == "darwin"
PACKAGE = "tts_kernels"
LIBRARY = f"lib{PACKAGE}"
FLAGS = ["-O3", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi"]
CUDA_FLAGS = ["-O3", "-std=c++17", "--compiler-options=-fPIC", "--cudart=static", "--threads=0", "-Icsrc"]
# Code for Ampere and Hopper, and PTX that the driver compiles for what is newer.
CUDA_ARCHITECTURES = ["compute_80,code=sm_80", "compute_90a,code=sm_90a", "compute_90,code=compute_90"]


CUDA_SOURCES = sorted(glob.glob("csrc/cuda/*.cu"))
NVCC = shutil.which("nvcc")


class BuildWithHeader(build_py):
    """Installs the C ABI's header as tts_kernels/include/kernels.h."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = os.path.join(self.build_lib, PACKAGE, "include")
            self.mkpath(folder)
            self.copy_file("csrc/kernels.h", folder)


class BuildNative(build_ext):
    """Builds the library, then the module."""

    def get_ext_filename(self, fullname):
        if fullname.rpartition(".")[2] != LIBRARY:
            return super().get_ext_filename(fullname)
        return os.path.join(*fullname.split(".")) + (".dylib" if IS_MAC else ".so")

    def build_extension(self, ext):
        if ext.name.endswith(LIBRARY):
            self._build_library(ext)
        else:
            ext.library_dirs.append(os.path.join(self.build_lib, PACKAGE))
            if CUDA_SOURCES and NVCC:
                ext.define_macros.append(("TTS_CUDA", "1"))
            super().build_extension(ext)

    def _build_library(self, ext):
        if self._has_openmp():
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        if CUDA_SOURCES and NVCC:
            self._add_cuda(ext)
        link_bundle = self.compiler.linker_so_cxx
        # A Mac's Python loads bundles, and nothing can be linked to a bundle.
        self.compiler.linker_so_cxx = ["-dynamiclib" if flag == "-bundle" else flag for flag in link_bundle]
        super().build_extension(ext)
        self.compiler.linker_so_cxx = link_bundle

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

    def _add_cuda(self, ext) -> None:
        os.makedirs(self.build_temp, exist_ok=True)
        codes = [f"-gencode=arch={code}" for code in CUDA_ARCHITECTURES]
        for source in CUDA_SOURCES:
            target = os.path.join(self.build_temp, os.path.basename(source) + ".o")
            subprocess.check_call([NVCC, *CUDA_FLAGS, *codes, "-c", source, "-o", target])
            ext.extra_objects.append(target)
        says = subprocess.run([NVCC, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=True).stderr
        ext.library_dirs += re.findall(r'"-L([^"]+)"', says)
        ext.libraries += ["cudart_static", "rt", "dl", "pthread"]


def extension(name: str, sources: list[str], **more) -> Pybind11Extension:
    depends = ["setup.py", *sorted(glob.glob("csrc/**/*.h", recursive=True))]
    flags = {"cxx_std": 17, "extra_compile_args": list(FLAGS)}
    return Pybind11Extension(f"{PACKAGE}.{name}", sources, depends=depends, include_dirs=["csrc"], **flags, **more)


library = extension(
    LIBRARY,
    sorted([*glob.glob("csrc/common/*.cpp"), *glob.glob("csrc/cpu/*.cpp")]),
    include_pybind11=False,
    extra_link_args=[f"-Wl,-install_name,@rpath/{LIBRARY}.dylib" if IS_MAC else f"-Wl,-soname,{LIBRARY}.so"],
)
module = extension(
    "_native",
    ["csrc/bindings.cpp"],
    libraries=[PACKAGE],
    extra_link_args=["-Wl,-rpath,@loader_path" if IS_MAC else "-Wl,-rpath,$ORIGIN"],
)

with ParallelCompile(default=0):
    setup(ext_modules=[library, module], cmdclass={"build_ext": BuildNative, "build_py": BuildWithHeader})
