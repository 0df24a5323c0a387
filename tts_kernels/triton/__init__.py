"""Kernels for NVIDIA and AMD GPUs in Triton: a launcher and its kernels in each file; `backend` registers them."""
