"""Counter-based random numbers: a draw is a function of (key, counter) alone."""

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def uniform(key: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    """f64[N] in (0, 1), 24 bits each: word 0 of Philox4x32-10 under i64[N] `key` at i64[N] `counter`.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011). 64-bit products wrap in int64, which leaves
    their bits right; the mask undoes the sign of the shift.
    """
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    c0, c1 = counter & _LOW, (counter >> 32) & _LOW
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return ((c0 >> 8).double() + 0.5) * 2.0**-24
