"""Inputs of `decoder` with what must come out, and the same layers through the ops one by one."""

from functools import partial

import numpy as np
import torch
from cases import HALVES_TOO, Case, allowance, family, generator, normal
from torch.nn import functional as F
from trees import Tree, dense_attention, depth_first_leaves, filled_pages, random_tree

import tts_kernels
from tts_kernels import pack
from tts_kernels.attend import plan

EPS = 1e-5


def decoder_case(dtype, tree: Tree, leaves, counts, heads, sizes, num_layers=2, is_qwen=(False, False), seed=0) -> Case:
    """`counts[i]` new tokens at the end of node `leaves[i]`; heads (H, G, D), sizes (E, F, R).

    `is_qwen`: biases as in Qwen 2 and on all else too, norms of heads as in Qwen 3.
    """
    (H, G, D), (E, width, R) = heads, sizes
    new = [tree.tokens[leaf][len(tree.tokens[leaf]) - n :] for leaf, n in zip(leaves, counts)]
    slots = torch.tensor([slot for part in new for slot in part], dtype=torch.int64)
    contexts = [
        tree.context(leaf)[: len(tree.context(leaf)) - left] for leaf, n in zip(leaves, counts) for left in range(n)[::-1]
    ]
    indptr = [0, *np.cumsum(counts).tolist()]
    items, spans = plan(*tree.plan_inputs(leaves, indptr, 0, 0), backend="reference").needed.tolist()
    made = plan(*tree.plan_inputs(leaves, indptr, items, spans), backend="reference")

    layers = [filled_pages(tree, G, D, dtype, generator(seed + i)) for i in range(num_layers)]
    keys, values = (torch.stack([layer[i] for layer in layers]) for i in (0, 1))
    keys[:, slots // tree.page_size, :, slots % tree.page_size] = float("nan")  # what is not written must not be read
    values[:, slots // tree.page_size, :, slots % tree.page_size] = float("nan")

    weights = _weights(dtype, num_layers, heads, sizes, is_qwen, seed)
    angles = 9 * normal((len(slots), R), torch.float32, seed + 20)
    hidden, cos, sin = normal((len(slots), E), dtype, seed + 21), angles.cos().to(dtype), angles.sin().to(dtype)

    batch = hidden, cos, sin, keys, values, slots
    settings = D**-0.5, EPS, H, width
    exact, plain = (_decoder(batch, contexts, settings, weights, d) for d in (torch.float64, dtype))
    expected = {name: (one, allowance(one, other)) for name, one, other in zip(("out", "keys", "values"), exact, plain)}
    packed = {name: _packed(x) if name in ("qkv", "o", "gate_up", "down") else x for name, x in weights.items()}
    return Case((*batch, made.spans, made.item_indptr, made.items, *settings, *packed.values()), expected)


def _weights(dtype, num_layers, heads, sizes, is_qwen, seed) -> dict[str, torch.Tensor | None]:
    """In the order of the op; products keep the scale of what goes in."""
    (H, G, D), (E, width, _), (has_bias, has_head_norms) = heads, sizes, is_qwen
    columns = (H + 2 * G) * D
    shapes = {"input_norm": (E,), "qkv": (columns, E), "qkv_bias": (columns,), "q_norm": (D,), "k_norm": (D,)}
    shapes |= {"o": (E, H * D), "o_bias": (E,), "post_norm": (E,), "gate_up": (2 * width, E), "gate_up_bias": (2 * width,)}
    shapes |= {"down": (E, width), "down_bias": (E,)}
    weights: dict[str, torch.Tensor | None] = {}
    for i, (name, shape) in enumerate(shapes.items()):
        scale = max(shape[-1], 1) ** -0.5 if len(shape) > 1 else 1.0
        is_absent = (name.endswith("_bias") and not has_bias) or (name in ("q_norm", "k_norm") and not has_head_norms)
        weights[name] = None if is_absent else (scale * normal((num_layers, *shape), torch.float32, seed + i)).to(dtype)
    return weights


def _packed(weights: torch.Tensor) -> torch.Tensor:
    return torch.stack([pack(x, backend="reference") for x in weights])


def _decoder(batch, contexts, settings, weights, dtype):
    """(hidden states, keys, values) behind Llama's layers, written down once more, all arithmetic in `dtype`."""
    x, cos, sin, keys, values = (tensor.to(dtype, copy=True) for tensor in batch[:5])
    slots, (scale, eps, H, _), G = batch[5], settings, keys.shape[2]
    for i in range(len(keys)):
        w = {name: None if weight is None else weight[i].to(dtype) for name, weight in weights.items()}
        heads = F.linear(F.rms_norm(x, x.shape[-1:], w["input_norm"], eps), w["qkv"], w["qkv_bias"])
        q, k, v = heads.view(len(x), H + 2 * G, keys.shape[4]).split((H, G, G), 1)
        q, k = (
            part if w[norm] is None else F.rms_norm(part, part.shape[-1:], w[norm], eps)
            for part, norm in ((q, "q_norm"), (k, "k_norm"))
        )
        q, k = (_rotated(part, cos[:, None], sin[:, None]) for part in (q, k))
        at = slots // keys.shape[3], slice(None), slots % keys.shape[3]
        keys[i][at], values[i][at] = k, v
        attended, _ = dense_attention(q, keys[i], values[i], contexts, scale, dtype)
        x = x + F.linear(attended.flatten(1), w["o"], w["o_bias"])
        gate, up = F.linear(F.rms_norm(x, x.shape[-1:], w["post_norm"], eps), w["gate_up"], w["gate_up_bias"]).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, w["down"], w["down_bias"])
    return x, keys, values


def _rotated(x, cos, sin):
    turned, rest = x.tensor_split([cos.shape[-1]], -1)
    low, high = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-high, low], -1) * sin, rest], -1)


def one_by_one(inputs, backend: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out, keys, values) of the ops that `decoder` is made of, called in turn."""
    hidden, cos, sin, keys, values, slots, spans, item_indptr, items, scale, eps, H, width, *weights = inputs
    keys, values, G = keys.clone(), values.clone(), keys.shape[2]
    ops = {name: partial(op, backend=backend) for name, op in tts_kernels.OPS.items()}
    for i in range(len(keys)):
        layer = (None if x is None else x[i] for x in weights)
        input_norm, qkv, qkv_bias, q_norm, k_norm, o, o_bias, post_norm, gate_up, gate_up_bias, down, down_bias = layer
        D = keys.shape[4]
        heads = ops["linear"](ops["rms_norm"](hidden, input_norm, eps), (H + 2 * G) * D, qkv, qkv_bias).view(
            len(hidden), H + 2 * G, D
        )
        for part, norm in ((heads[:, :H], q_norm), (heads[:, H : H + G], k_norm)):
            if norm is not None:
                part.copy_(ops["rms_norm"](part.reshape(-1, D), norm, eps).view(part.shape))
        ops["rope"](heads[:, : H + G], cos, sin)
        ops["append"](heads[:, H : H + G], heads[:, H + G :], keys[i], values[i], slots)
        out, _ = ops["attend"](heads[:, :H], keys[i], values[i], spans, item_indptr, items, scale)
        hidden = hidden + ops["linear"](out.flatten(1), hidden.shape[1], o, o_bias)
        gate_up = ops["linear"](ops["rms_norm"](hidden, post_norm, eps), 2 * width, gate_up, gate_up_bias)
        hidden = hidden + ops["linear"](ops["silu_and_mul"](gate_up), hidden.shape[1], down, down_bias)
    return hidden, keys, values


@family("decoder", HALVES_TOO)
def decoder_cases():
    def decode(dtype, seed, **settings):
        tree = random_tree(np.random.default_rng(seed), page_size=(1, 4, 5, 16)[seed % 4], num_nodes=9)
        leaves = [x for x in depth_first_leaves(tree) if tree.length[x]]
        return decoder_case(dtype, tree, leaves, [1] * len(leaves), seed=seed, **settings)

    def prefill(dtype, size, width):
        tree = Tree(16, 40)
        root = tree.add(-1, 21)
        leaves = [tree.add(root, 290), tree.add(root, 7, start=3)]
        return decoder_case(dtype, tree, leaves, [270, 3], (2, 1, 16), (size, width, 16))

    def no_tokens(dtype):
        tree = Tree(4, 4)
        return decoder_case(dtype, tree, [tree.add(-1, 3)], [0], (2, 1, 16), (24, 40, 16))

    yield "llama", partial(decode, seed=0, heads=(4, 2, 16), sizes=(48, 80, 16))
    yield "qwen2", partial(decode, seed=1, heads=(7, 1, 24), sizes=(33, 51, 24), is_qwen=(True, False))
    yield "qwen3", partial(decode, seed=2, heads=(4, 4, 40), sizes=(64, 96, 40), is_qwen=(False, True))
    yield "part-of-a-head-is-rotated", partial(decode, seed=3, heads=(2, 1, 64), sizes=(40, 32, 16), is_qwen=(True, True))
    yield "one-layer", partial(decode, seed=4, heads=(3, 3, 8), sizes=(16, 16, 8), num_layers=1)
    yield "prefill-of-more-rows-than-a-chunk", partial(prefill, size=24, width=40)
    yield "prefill-with-gates-in-whole-panels", partial(prefill, size=24, width=48)
    yield "prefill-of-wide-rows", partial(prefill, size=4128, width=48)
    yield "no-tokens", no_tokens
