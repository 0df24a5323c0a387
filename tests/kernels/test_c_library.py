"""The C ABI as a C program sees it: a header, a library, no Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import tts_kernels

SOURCES = Path(__file__).parents[2] / "csrc"
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif("native" not in tts_kernels.linear.backends, reason="the C++ module is not built"),
]


def test_the_header_is_plain_c_and_has_the_version_of_the_module():
    header = Path(tts_kernels.get_include()) / "kernels.h"
    subprocess.run(["cc", *STRICT, "-fsyntax-only", "-x", "c", str(header)], check=True)
    assert header.read_text() == (SOURCES / "kernels.h").read_text(), "the installed header is an old one"
    assert f"#define TTS_ABI_VERSION {tts_kernels.native._native.abi_version}\n" in header.read_text()


def test_a_c_program_decodes_scores_prunes_and_forks_without_python(tmp_path):
    """The program compares every number with plain loops and fails at the first that differs."""
    library, program = Path(tts_kernels.get_library()), tmp_path / "example"
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-lm", "-o", str(program)]
    subprocess.run(["cc", *STRICT, str(SOURCES / "example.c"), "-I", tts_kernels.get_include(), *link], check=True)
    done = subprocess.run([program], env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *branches, refused = done.stdout.splitlines()
    assert len(branches) == 8 and all(line.startswith("node ") for line in branches)
    assert refused == "refused: fork: values of parents must be in [0, 16), got 16"


def test_the_library_needs_no_python():
    done = subprocess.run(["nm", "-D", "--undefined-only", tts_kernels.get_library()], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no nm")
    assert " Py" not in done.stdout and " _Py" not in done.stdout
