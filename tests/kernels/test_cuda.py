"""The CUDA kernels without a GPU: their sources run on the CPU, a fiber for each thread; and they are compiled and linked.

On a machine with a GPU the conformance test runs them there, too.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cases import FAMILIES, check_draws, copies, normal, sample_inputs
from conformance import LAYOUTS, compare, run
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cases import CASES

import tts_kernels
from tts_kernels import Op, cuda, register_backend

ROOT = Path(__file__).parents[2]
SOURCES = sorted(map(str, (ROOT / "csrc" / "cuda").glob("*.cu")))
OPS = ("copy_tails", "prune", "sample", "score")


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    """The ops with one more backend: the CUDA kernels, on the CPU."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("cuda") / "cuda_on_host.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-DTTS_THREADS=16", f"-I{ROOT / 'csrc'}"]
    host = str(ROOT / "tests" / "kernels" / "cuda_on_host.h")
    sources = ["-x", "c++", *SOURCES, str(ROOT / "csrc" / "common" / "error.cpp")]
    subprocess.run([compiler, *flags, "-include", host, *sources, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.tts_last_error.restype = ctypes.c_char_p
    kernels = cuda.kernels({f"cuda_{name}": launcher(loaded, f"tts_cuda_{name}") for name in OPS})
    made = {name: Op(tts_kernels.OPS[name].signature, tts_kernels.OPS[name].reference) for name in OPS}
    for name, op in made.items():
        register_backend(op, "cuda", kernels[name], devices=("cpu",))
    return made


def launcher(library, name):
    function = getattr(library, name)

    def call(*arguments):
        values = [ctypes.c_double(x) if isinstance(x, float) else ctypes.c_int64(x) for x in arguments]
        if function(*values):
            raise ValueError(library.tts_last_error().decode())

    return call


WALK = [(name, case, dtype) for name in OPS for case in FAMILIES[name].cases for dtype in FAMILIES[name].dtypes]


@pytest.mark.parametrize("name, case, dtype", WALK, ids=lambda x: str(x).removeprefix("torch."))
@pytest.mark.parametrize("layout", ["dense", "scattered"])
def test_a_cuda_kernel_gives_what_the_definition_says(ops, name, case, dtype, layout):
    made = FAMILIES[name].cases[case](dtype)
    compare(run(ops[name], made.inputs, "cuda", layout), made, "cuda")


@pytest.mark.parametrize("name", OPS)
def test_random_calls_of_cuda_kernels_give_what_the_definition_says(ops, name):
    @settings(max_examples=25 if name == "sample" else 8)
    @given(CASES[name], st.sampled_from(list(LAYOUTS)))
    def walk(case, layout):
        results = run(ops[name], case.inputs, "cuda", layout)
        compare(results, case, "cuda")
        if name == "sample":
            check_draws(case.inputs, results)

    walk()


@pytest.mark.parametrize("rule", ["top", "softmax", "systematic", "multinomial", "proportional"])
def test_a_segment_beyond_shared_memory_is_pruned_as_the_reference_does(ops, rule):
    scores = torch.randn(1500, generator=torch.Generator().manual_seed(7)).round(decimals=1)
    i32 = lambda *x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
    inputs = (scores, i32(0, 3, 1490), i32(40, 300), i32(2, 77), torch.tensor([5, -9]), rule, 0.7, 350)
    expected = tts_kernels.prune(*copies(inputs), backend="reference")
    for got, wanted in zip(ops["prune"](*inputs, backend="cuda"), expected):
        assert torch.equal(got, wanted)


FILTERS = [{}, {"top_p": 0.95}, {"top_k": 5000, "top_p": 0.8731}, {"top_k": 20}, {"min_p": 0.01}, {"temperature": 0.0}]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_draws_of_many_blocks_are_in_the_filtered_distribution_and_alike_in_any_batch(ops, settings, scale):
    """Siblings share what is read of their row; alone, each draws the same token, and all statistics have the same bits."""
    logits, row = scale * normal((2, 7013), torch.float32), [0] * 5 + [1] * 3
    given = {name: [value] * len(row) for name, value in settings.items()}
    inputs = sample_inputs(logits, row, key=[5**i for i in range(len(row))], with_statistics=1, **given)
    together = ops["sample"](*inputs, backend="cuda")
    check_draws(inputs, dict(zip((arg.name for arg in ops["sample"].outputs), together)))
    for i in (1, 6):
        alone = ops["sample"](inputs[0], *(x[i : i + 1] for x in inputs[1:9]), *inputs[9:], backend="cuda")
        for one, other in zip(alone, together):
            assert torch.equal(one, other[i : i + 1])


def test_bad_settings_are_refused_before_a_launch(ops):
    one = torch.zeros(1)
    i32 = lambda *x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        ops["prune"](one, i32(0, 1), i32(1), i32(1), None, "softmax", 0.0, 1, backend="cuda")
    with pytest.raises(ValueError, match="draw and need keys"):
        ops["prune"](one, i32(0, 1), i32(1), i32(1), None, "systematic", 1.0, 1, backend="cuda")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: the CUDA sources cannot be compiled here")
def test_where_nvcc_is_the_module_has_the_cuda_kernels():
    """That it could be imported shows that it was linked: nothing is undefined, and no driver is needed to load it."""
    native = pytest.importorskip("tts_kernels.native")._native
    assert {f"cuda_{name}" for name in OPS} <= set(vars(native))
    for name in OPS:
        assert "cuda" in tts_kernels.OPS[name].backends
