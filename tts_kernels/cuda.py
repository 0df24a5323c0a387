"""The backend `cuda`: CUDA C++ kernels of the C library on tensors of an NVIDIA GPU, where it was built with nvcc.

Each passes sizes, strides and addresses as kernels.h names them, and the current stream of torch. The functions come from
outside: from the C++ module, whose importer registers them, or in a test from the same sources compiled for the CPU.
"""

from collections.abc import Callable, Mapping

import torch

from tts_kernels.arguments import ACTIVATIONS, DTYPES, RULES, dense, dense_all, dense_rows, pointer
from tts_kernels.op import register_backend

Launchers = Mapping[str, Callable[..., None]]
"""`cuda_prune` and so on: the functions of kernels.h, pointers as integers, errors as exceptions."""


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _prune(launchers: Launchers) -> Callable[..., None]:
    def prune(scores, indptr, total, keep, keys, rule, temperature, capacity, *, widths, parents, counts):
        # The contiguous copies must outlive the call, so they have names.
        scores, indptr, total, keep = dense_all(scores, indptr, total, keep)
        keys = None if keys is None else dense(keys)
        workspace = torch.empty(3 * len(scores), dtype=torch.int64, device=scores.device)
        inputs = *(x.data_ptr() for x in (scores, indptr, total, keep)), pointer(keys)
        outputs = widths.data_ptr(), parents.data_ptr(), counts.data_ptr()
        sizes = len(scores), len(total)
        settings = RULES[rule], temperature, capacity, workspace.data_ptr()
        launchers["cuda_prune"](*sizes, *inputs, *settings, *outputs, _stream(scores))

    return prune


def _score(launchers: Launchers) -> Callable[..., None]:
    def score(hidden, head, bias, before, label, activation, *, out, running):
        hidden, (head, before) = dense_rows(hidden), dense_all(head, before)
        bias = None if bias is None else dense(bias)
        inputs = hidden.data_ptr(), hidden.stride(0), head.data_ptr(), pointer(bias), before.data_ptr()
        outputs = out.data_ptr(), running.data_ptr(), _stream(hidden)
        sizes = *hidden.shape, head.shape[0]
        launchers["cuda_score"](DTYPES[hidden.dtype], *sizes, *inputs, label, ACTIVATIONS[activation], *outputs)

    return score


def _copy_tails(launchers: Launchers) -> Callable[..., None]:
    def copy_tails(sources, destinations, counts, caches):
        (P, G, S, D), strides = caches[0].shape, caches[0].stride()
        if strides[-1] != 1 or any(cache.stride() != strides for cache in caches):
            raise ValueError(f"copy_tails: caches must all have the strides of the first, {strides}, and a dense last dim")
        sources, destinations, counts = dense_all(sources, destinations, counts)
        addresses = torch.tensor([cache.data_ptr() for cache in caches], device="cpu")
        copies = *(x.data_ptr() for x in (sources, destinations, counts)), addresses.data_ptr()
        sizes = len(sources), len(caches), G, D, P, S
        launchers["cuda_copy_tails"](DTYPES[caches[0].dtype], *sizes, *copies, *strides[:3], _stream(sources))

    return copy_tails


def _sample(launchers: Launchers) -> Callable[..., None]:
    def sample(*inputs, **outputs):
        *tensors, with_statistics = inputs
        tensors = dense_all(tensors[0].float(), *tensors[1:])
        logits, row, next_state = tensors[0], tensors[1], tensors[9]
        num_draws, vocabulary = len(row), logits.shape[1]
        workspace = torch.empty(3 * num_draws * -(-vocabulary // 256), dtype=torch.int64, device=logits.device)
        sizes = *logits.shape, num_draws, next_state.shape[0]
        pointers = [x.data_ptr() for x in tensors]
        results = workspace.data_ptr(), *(x.data_ptr() for x in outputs.values())
        launchers["cuda_sample"](*sizes, *pointers, with_statistics, *results, _stream(logits))

    return sample


def kernels(launchers: Launchers) -> dict[str, Callable[..., None]]:
    """The kernels by the name of their op."""
    makers = {"prune": _prune, "score": _score, "copy_tails": _copy_tails, "sample": _sample}
    return {name: make(launchers) for name, make in makers.items()}


def register(launchers: Launchers) -> None:
    """Register all of them as the backend `cuda`."""
    for name, kernel in kernels(launchers).items():
        register_backend(name, "cuda", kernel, devices=("cuda",))
