"""Kernels for NVIDIA and AMD GPUs in Triton: a launcher and its kernels in each file; `backend` registers them.

Sizes that change with every batch are in `do_not_specialize`: Triton compiles a kernel anew for 1 and for multiples of 16, in the
middle of a search. Sizes and strides of a model are not.
"""
