"""Where large tensors live."""

from pathlib import Path

import pytest
import torch

from tts_kernels import memory


def flags_of(address: int) -> list[str]:
    """The kernel's flags of the mapping that an address of this process lies in."""
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name and not name.endswith(":"):
            first, last = (int(x, 16) for x in name.split("-"))
            is_inside = first <= address < last
        elif is_inside and name == "VmFlags:":
            return values
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no transparent huge pages")
def test_large_tensors_may_have_huge_pages():
    """Memory that could be shared with other processes never has any, whatever it asks for, unless the system is set up so."""
    tensor = memory.empty((3, memory.HUGE_PAGE), torch.uint8)
    flags = flags_of(tensor.data_ptr())
    assert "hg" in flags and "sh" not in flags and tensor.data_ptr() % memory.HUGE_PAGE == 0


@pytest.mark.parametrize("shape", [(0, 4), (3,), (2, memory.HUGE_PAGE // 2)])
def test_a_tensor_has_its_shape_and_is_written(shape):
    tensor = memory.empty(shape, torch.float32).fill_(7)
    assert tensor.shape == shape and tensor.is_contiguous() and bool((tensor == 7).all())
