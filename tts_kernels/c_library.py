"""The C library and its header, for programs that call the kernels without Python (csrc/example.c is one)."""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent


def get_include() -> str:
    """The folder of `kernels.h`: in the installed package, or `csrc` of a source checkout."""
    installed = _PACKAGE / "include"
    return str(installed if installed.is_dir() else _PACKAGE.parent / "csrc")


def get_library() -> str:
    """The path of the shared library that has the functions of `kernels.h`; the Python module calls the same file.

    Raises `FileNotFoundError` where it was not built.
    """
    library = _PACKAGE / ("libtts_kernels.dylib" if sys.platform == "darwin" else "libtts_kernels.so")
    if not library.is_file():
        raise FileNotFoundError(f"{library} was not built: install the package with a C++ compiler at hand")
    return str(library)
