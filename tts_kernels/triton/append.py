"""append on a GPU."""

import triton
import triton.language as tl

from tts_kernels.arguments import check_rows_in_place, dense, dense_rows

BLOCK_R = 8


@triton.jit(do_not_specialize=["num_rows"])
def _append_kernel(
    k_ptr, v_ptr, keys_ptr, values_ptr, slots_ptr, num_rows, G, D, S,
    k_token, k_head, v_token, v_head, keys_page, keys_head, keys_slot, values_page, values_head, values_slot,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program per BLOCK_R pairs (token, head): it reads BLOCK_R*D new keys and as many values and writes them to their slots,
    # 4*BLOCK_R*D*s bytes in all. Invariant: slots are distinct but for -1, which is not written, so no two programs write one
    # place.
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    token, head = row // G, row % G
    slot = tl.load(slots_ptr + token, mask=row < num_rows, other=-1)
    page, offset = slot // S, slot % S
    mask = (slot >= 0)[:, None] & (d < D)[None, :]
    token, head = token.to(tl.int64), head.to(tl.int64)
    k = tl.load(k_ptr + (token * k_token + head * k_head)[:, None] + d[None, :], mask=mask)
    v = tl.load(v_ptr + (token * v_token + head * v_head)[:, None] + d[None, :], mask=mask)
    tl.store(keys_ptr + (page * keys_page + head * keys_head + offset * keys_slot)[:, None] + d[None, :], k, mask=mask)
    tl.store(values_ptr + (page * values_page + head * values_head + offset * values_slot)[:, None] + d[None, :], v, mask=mask)


def append(k, v, keys, values, slots):
    check_rows_in_place("append", keys=keys, values=values)
    k, v, slots = dense_rows(k), dense_rows(v), dense(slots)
    num_tokens, G, D = k.shape
    if k.numel() == 0:
        return
    strides = (*k.stride()[:2], *v.stride()[:2], *keys.stride()[:3], *values.stride()[:3])
    grid = (triton.cdiv(num_tokens * G, BLOCK_R),)
    sizes = {"BLOCK_R": BLOCK_R, "BLOCK_D": triton.next_power_of_2(D)}
    _append_kernel[grid](k, v, keys, values, slots, num_tokens * G, G, D, keys.shape[2], *strides, **sizes)
