"""Random inputs: batches of rows over trees and flat page tables, and a case of every op."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import torch
from cases import (
    BF16,
    F16,
    F32,
    UNREAD,
    Case,
    append_case,
    attention_case,
    copy_tails_case,
    fork_case,
    linear_case,
    normal,
    pack_case,
    rms_norm_case,
    rope_case,
    sample_inputs,
    score_case,
    silu_and_mul_case,
)
from decoder_cases import decoder_case
from trees import Tree, depth_first_leaves, i32, random_tree

import tts_kernels

SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from((F32, F16, BF16))


def sizes(*large: int, least: int = 0) -> st.SearchStrategy[int]:
    """None, one, primes, both sides of a vector and of a block, and what is given as large."""
    small = (0, 1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 31, 32, 33)
    return st.sampled_from([size for size in (*small, *large) if size >= least])


# ---- batches


@st.composite
def tree_batches(draw, page_sizes=(1, 2, 3, 4, 5), max_length=9) -> tuple[Tree, list[int], list[int]]:
    """(tree, leaves, new tokens of each): distinct nodes of a random tree, in any order, some without new tokens."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tree = random_tree(rng, draw(st.sampled_from(page_sizes)), draw(st.integers(1, 24)), max_length)
    order = depth_first_leaves(tree) if draw(st.booleans()) else list(range(len(tree.parent)))
    leaves = draw(st.lists(st.sampled_from(order), unique=True, max_size=12))
    if draw(st.booleans()):
        leaves.sort(key=order.index)
    counts = [draw(st.integers(0, tree.length[leaf])) for leaf in leaves]
    return tree, leaves, counts


@st.composite
def flat_batches(draw) -> tuple[np.ndarray, list[int], list[int], int]:
    """(page tables, contexts, new tokens of each row, page size): each row forks off the one before it or begins anew."""
    page_size, rows = draw(st.integers(1, 4)), []
    fresh = iter(range(1000))
    for _ in range(draw(st.integers(0, 7))):
        before = rows[-1] if rows else []
        pages = before[: draw(st.integers(0, len(before)))]
        rows.append(pages + [next(fresh) for _ in range(draw(st.integers(0 if pages else 1, 3)))])
    context = [draw(st.integers((len(pages) - 1) * page_size + 1, len(pages) * page_size)) for pages in rows]
    counts = [draw(st.integers(0, tokens)) for tokens in context]
    tables = np.full((len(rows), max(map(len, rows), default=0) + draw(st.integers(0, 2))), UNREAD, np.int32)
    for table, pages in zip(tables, rows):
        table[: len(pages)] = pages
    return tables, context, counts, page_size


def offsets(counts) -> list[int]:
    return [0, *np.cumsum(counts).tolist()]


# ---- cases


def as_the_reference(name: str, inputs: tuple) -> Case:
    """A case of an op whose reference is plain Python and has tests of what it means: native must give its bits."""
    op = tts_kernels.OPS[name]
    made = op(*inputs, backend="reference")
    return Case(inputs, {arg.name: (x, 0.0) for arg, x in zip(op.outputs, made)})


@st.composite
def linear_cases(draw) -> Case:
    m, n, k = draw(sizes(61, 64, 127, 257)), draw(sizes(64, 101, 257)), draw(sizes(64, 129, 389, 1031))
    return linear_case(draw(DTYPES), m, n, k, draw(st.booleans()), draw(SEEDS))


@st.composite
def pack_cases(draw) -> Case:
    return pack_case(draw(DTYPES), draw(sizes(64, 257)), draw(sizes(64, 389)), draw(SEEDS))


@st.composite
def rms_norm_cases(draw) -> Case:
    eps = draw(st.sampled_from((1e-6, 1e-5, 1.0)))
    return rms_norm_case(draw(DTYPES), draw(sizes(61, 257)), draw(sizes(64, 65, 128, 389, 1031)), eps, draw(SEEDS))


@st.composite
def silu_and_mul_cases(draw) -> Case:
    scale = draw(st.sampled_from((0.01, 3.0, 60.0)))
    return silu_and_mul_case(draw(DTYPES), draw(sizes(61, 257)), draw(sizes(64, 65, 389, 1031)), scale, draw(SEEDS))


@st.composite
def rope_cases(draw) -> Case:
    dim = draw(sizes(40, 64, 80, 128, 257))
    rotary = draw(st.sampled_from([dim - dim % 2, *(r for r in (0, 2, 16, 38, 64) if r <= dim)]))
    return rope_case(draw(DTYPES), draw(sizes(61)), draw(sizes(40)), dim, rotary, draw(SEEDS))


@st.composite
def append_cases(draw) -> Case:
    tokens, heads, dim = draw(sizes(61, 257)), draw(st.sampled_from((1, 2, 3, 8))), draw(sizes(40, 64, 80, 128, 256))
    page_size = draw(st.sampled_from((1, 3, 16, 32)))
    num_pages = -(-tokens // page_size) + draw(st.integers(1, 5))
    return append_case(draw(DTYPES), tokens, heads, dim, num_pages, page_size, draw(SEEDS))


@st.composite
def attend_cases(draw) -> Case:
    max_length = draw(st.sampled_from((3, 9, 40, 150)))
    tree, leaves, counts = draw(tree_batches((1, 2, 3, 5, 16, 32, 64), max_length))
    most = draw(st.sampled_from((1, 1, 4, 33)))  # decoding half of the time
    counts = [min(count, most) for count in counts]
    num_kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from((1, 4, 7, 8, 20)))
    dim = draw(st.sampled_from((8, 16, 24, 40, 64, 80, 96, 128, 256)))
    return attention_case(draw(DTYPES), tree, leaves, counts, num_kv_heads * group, num_kv_heads, dim, draw(SEEDS))


@st.composite
def decoder_cases(draw) -> Case:
    tree, leaves, counts = draw(tree_batches((1, 3, 16), draw(st.sampled_from((3, 9, 40)))))
    counts = [min(count, draw(st.sampled_from((1, 1, 33)))) for count in counts]
    num_kv_heads, group, dim = draw(st.integers(1, 2)), draw(st.sampled_from((1, 4, 7))), draw(st.sampled_from((8, 24, 64)))
    rotary = draw(st.sampled_from([r for r in (2, 8, 16, 64) if r <= dim]))
    sizes_ = draw(sizes(64, 129, least=1)), draw(sizes(65, least=1)), rotary
    is_qwen, num_layers = (draw(st.booleans()), draw(st.booleans())), draw(st.integers(1, 3))
    heads = num_kv_heads * group, num_kv_heads, dim
    return decoder_case(draw(DTYPES), tree, leaves, counts, heads, sizes_, num_layers, is_qwen, draw(SEEDS))


@st.composite
def plan_cases(draw) -> Case:
    tree, leaves, counts = draw(tree_batches())
    inputs = tree.plan_inputs(leaves, offsets(counts))
    items, spans = tts_kernels.plan(*inputs, backend="reference").needed.tolist()
    return as_the_reference("plan", (*inputs[:-2], items, spans))


@st.composite
def plan_pages_cases(draw) -> Case:
    tables, context, counts, page_size = draw(flat_batches())
    inputs = (i32(tables), i32(context), i32(offsets(counts)), page_size)
    items, spans = tts_kernels.plan_pages(*inputs, 64, 512, backend="reference").needed.tolist()
    return as_the_reference("plan_pages", (*inputs, items, spans))


@st.composite
def score_cases(draw) -> Case:
    rows, dim, labels = draw(sizes(257)), draw(sizes(129, 896)), draw(st.integers(1, 5))
    bad_rows = draw(st.lists(st.tuples(st.integers(0, max(rows - 1, 0)), st.sampled_from(("nan", "inf", "-inf"))), max_size=3))
    activation = draw(st.sampled_from(("softmax", "sigmoid")))
    bad_rows = [(row, float(value)) for row, value in bad_rows if rows]
    return score_case(draw(DTYPES), rows, dim, labels, activation, draw(st.booleans()), 1.0, draw(SEEDS), bad_rows)


@st.composite
def prune_cases(draw) -> Case:
    """Scores of which far more than half tie, some of them not finite."""
    rng = np.random.default_rng(draw(SEEDS))
    counts = draw(st.lists(sizes(64, 257), max_size=9))
    values, p = (0.0, -0.0, 0.25, 0.5, 1.0, np.nan, np.inf, -np.inf), (0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05)
    scores = rng.choice(values, sum(counts), p=p) + rng.choice((0, 1), sum(counts), p=(0.8, 0.2)) * rng.normal(size=sum(counts))
    total, keep = rng.integers(0, 70, len(counts)), rng.integers(0, 40, len(counts))
    keys = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, len(counts)))
    rule = draw(st.sampled_from(("top", "softmax", "systematic", "multinomial", "proportional")))
    temperature, room = draw(st.sampled_from((1e-3, 0.1, 1.0, 30.0))), draw(st.integers(0, 9))
    scores = torch.from_numpy(scores.astype(np.float32))
    capacity = int(total.sum()) + room
    inputs = (scores, i32(offsets(counts)), i32(total), i32(keep), keys, rule, temperature, capacity)
    return as_the_reference("prune", inputs)


@st.composite
def fork_cases(draw) -> Case:
    num_nodes = draw(st.integers(3, 300))
    rng = np.random.default_rng(draw(SEEDS))
    order, count = rng.permutation(num_nodes), draw(st.integers(0, num_nodes - 1))
    return fork_case(None, rng.choice(order[count:], count).tolist(), order[:count].tolist(), num_nodes)


@st.composite
def copy_tails_cases(draw) -> Case:
    rng = np.random.default_rng(draw(SEEDS))
    page_size, num_copies, num_sources = draw(st.sampled_from((1, 3, 16, 32))), draw(sizes()), draw(st.integers(1, 9))
    pages = rng.permutation(num_copies + num_sources)
    counts = rng.integers(0, page_size + 1, num_copies)
    copied = np.stack([rng.choice(pages[num_copies:], num_copies), pages[:num_copies], counts], 1).tolist()
    heads, dim, num_caches = draw(st.sampled_from((1, 2, 8))), draw(sizes(64, 128)), draw(st.integers(1, 6))
    return copy_tails_case(draw(DTYPES), copied, num_caches, heads, dim, len(pages), page_size, draw(SEEDS))


@st.composite
def sample_cases(draw) -> Case:
    """Logits of which more than half tie. Which token is drawn is held to the distribution by `check_draws`."""
    rng = np.random.default_rng(draw(SEEDS))
    num_rows, vocabulary, count = draw(st.integers(1, 9)), draw(sizes(255, 256, 257, 1031, least=1)), draw(sizes(61))
    logits = (4 * normal((num_rows, vocabulary), F32, draw(SEEDS))).round() / 2
    logits[torch.from_numpy(rng.random(logits.shape) < 0.1)] = float("-inf")
    for _ in range(draw(st.integers(0, 2))):
        logits[rng.integers(num_rows), rng.integers(vocabulary)] = rng.choice((np.nan, np.inf))
    row = rng.integers(0, num_rows, count)
    num_states = draw(st.integers(1, 3))
    settings = {
        "temperature": rng.choice((0.0, 0.3, 1.0, 2.5), count),
        "top_k": rng.choice((0, 1, 7, 1000), count),
        "top_p": rng.choice((1.0, 0.9, 0.3, 0.0), count),
        "min_p": rng.choice((0.0, 0.05, 1.0), count),
        "key": rng.integers(-(2**63), 2**63 - 1, count),
        "position": rng.integers(0, 2**62, count),
        "state": rng.integers(0, num_states, count) | rng.integers(0, 4, count) << 24,
        "next_state": torch.from_numpy(rng.integers(0, 2**31 - 1, (num_states, vocabulary), dtype=np.int32)),
    }
    order = np.argsort(row, kind="stable") if draw(st.booleans()) else np.arange(count)
    with_statistics = draw(st.integers(0, 1))
    ordered = {name: value if name == "next_state" else value[order].tolist() for name, value in settings.items()}
    logits = logits.to(draw(DTYPES))
    return Case(sample_inputs(logits, row[order].tolist(), with_statistics=with_statistics, **ordered), {})


CASES = {
    "append": append_cases(),
    "attend": attend_cases(),
    "copy_tails": copy_tails_cases(),
    "decoder": decoder_cases(),
    "fork": fork_cases(),
    "linear": linear_cases(),
    "pack": pack_cases(),
    "plan": plan_cases(),
    "plan_pages": plan_pages_cases(),
    "prune": prune_cases(),
    "rms_norm": rms_norm_cases(),
    "rope": rope_cases(),
    "sample": sample_cases(),
    "score": score_cases(),
    "silu_and_mul": silu_and_mul_cases(),
}
