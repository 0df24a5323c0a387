"""score: read step scores off hidden states, and keep their running aggregates."""

import torch

from tts_kernels.op import op


@op(
    "hidden T[N,E], head T[C,E], bias? f32[C], before f32[N,4], label int in 0..C, activation str in softmax|sigmoid"
    " -> out f32[N], running f32[N,4]"
)
def score(hidden, head, bias, before, label, activation, *, out, running):
    """Score N steps from the hidden states at their ends: `softmax(head @ h + bias)[label]`, or the sigmoid of row `label`.

    Only the C label rows of the head are read, never a vocabulary. `before` and `running` hold per step (min, sum of logs,
    sum, count) over the path up to the parent and up to the step: last, min, prod and mean are O(1) per step. The row of a
    path's first step is (inf, 0, 0, 0). A score that is not finite gives NaN in `out` and in min, sum of logs and sum: such
    a path is never selected (`prune`).
    """
    logits = hidden.float() @ head.float().T
    if bias is not None:
        logits = logits + bias
    value = torch.sigmoid(logits[:, label]) if activation == "sigmoid" else torch.softmax(logits, -1)[:, label]
    out.copy_(value)
    running[:, 0] = torch.minimum(before[:, 0], value)  # torch.minimum propagates NaN
    running[:, 1] = before[:, 1] + torch.log(value)
    running[:, 2] = before[:, 2] + value
    running[:, 3] = before[:, 3] + 1
