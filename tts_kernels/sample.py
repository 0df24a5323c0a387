"""sample: draw the next tokens, find the stops, and take the statistics, from one read of the logits."""

import torch

from tts_kernels.op import op
from tts_kernels.philox import uniform

STATE_MASK = (1 << 24) - 1
KIND_SHIFT = 24
RUNNING, STEP, STOP, EOS = range(4)
"""What a token did: nothing, completed a step's stop string, completed an answer's stop string, was an end-of-text id."""


@op(
    "logits T[R,V], row i32[N] in 0..R, key i64[N], position i64[N], temperature f32[N], top_k i32[N], top_p f32[N],"
    " min_p f32[N], state i32[N], next_state i32[A,V], with_statistics int in 0..2"
    " -> token i64[N], logprob f32[N], next i32[N], confidence f32[N], certainty f32[N]"
)
def sample(
    logits,
    row,
    key,
    position,
    temperature,
    top_k,
    top_p,
    min_p,
    state,
    next_state,
    with_statistics,
    *,
    token,
    logprob,
    next,
    confidence,
    certainty,
):
    """Draw token `i` from `logits[row[i]]`; several draws of one row are siblings.

    `temperature` 0 is greedy, lowest id among ties. Filters act on the tempered distribution in the order top_k (0: off),
    top_p (1: off), min_p (0: off, relative to the likeliest token), and always leave the likeliest token. The draw inverts
    the cumulative distribution with the one uniform of (`key[i]`, `position[i]`): it depends on nothing else in the batch.
    A logit of -inf is never drawn. A row with a NaN or +inf, or without a finite logit, draws its largest finite logit (token
    0 without one) and is flagged by a `logprob` of NaN.

    `logprob` is of the untempered, unfiltered distribution. `next` is the stop automaton's `next_state[state & mask, token]`:
    the state in the low 24 bits, above them what the token did (`STEP`, `STOP`, `EOS`). With `with_statistics`: `confidence`
    is minus the mean log-probability of the 20 likeliest tokens (DeepConf), `certainty` minus the mean over the vocabulary
    of log(V p) (self-certainty); else NaN. Arithmetic is float32 for every T.
    """
    if not bool((temperature >= 0).all()):
        raise ValueError(f"sample: values of temperature must be >= 0, got {temperature.tolist()}")
    logits = logits.float()
    is_valid = (logits < float("inf")).all(-1, keepdim=True) & logits.isfinite().any(-1, keepdim=True)
    logp = torch.log_softmax(torch.where(is_valid, logits, float("nan")), -1)
    finite = torch.where(logits.isfinite(), logits, float("-inf"))
    is_greedy = (temperature == 0) | ~is_valid[row.long(), 0]
    drawn = _draw(finite, row, key, position, temperature, top_k, top_p, min_p)
    token.copy_(torch.where(is_greedy, finite.argmax(-1)[row], drawn))
    logprob.copy_(logp[row.long(), token])
    next.copy_(next_state[(state & STATE_MASK).long(), token])
    confidence.fill_(float("nan"))
    certainty.fill_(float("nan"))
    if with_statistics:
        confidence.copy_(-logp.topk(min(20, logp.shape[1]), -1).values.mean(-1)[row])
        certainty.copy_(-(logp + torch.log(torch.tensor(float(logp.shape[1])))).mean(-1)[row])


def _draw(logits, row, key, position, temperature, top_k, top_p, min_p):
    """Token ids by inverse transform over the filtered, tempered probabilities in order of id."""
    safe = torch.where(temperature == 0, 1.0, temperature)
    p = torch.softmax(logits[row] / safe[:, None], -1)
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        p = p * _kept(p, top_k, top_p)
    if bool((min_p > 0).any()):
        p = p * (p >= min_p[:, None].clamp(max=1) * p.amax(-1, keepdim=True))
    cumulative = p.double().cumsum(-1)
    target = uniform(key, position)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=p.shape[1] - 1)[:, 0]


def _kept(p, top_k, top_p):
    """bool[N,V]: the tokens that top_k, then top_p (the smallest set of mass >= top_p of what top_k left), keep."""
    ordered, index = p.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(p.shape[1], device=p.device)
    inside = (top_k[:, None] <= 0) | (rank < top_k[:, None])
    ordered = ordered * inside
    before = ordered.double().cumsum(-1) - ordered
    inside &= (top_p[:, None] >= 1) | (before < top_p[:, None] * ordered.sum(-1, keepdim=True))
    inside[:, 0] = True
    return torch.zeros_like(inside).scatter_(-1, index, inside)
