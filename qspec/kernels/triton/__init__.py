"""Triton kernels for NVIDIA GPUs (Hopper first). Importing a module here needs triton; importing this package does not.

Without a GPU every kernel runs in Triton's interpreter (``TRITON_INTERPRET=1`` before the import) and compiles for one.
"""
