"""What is measured on a GPU: ``python -m benchmarks.gpu.kernels``. NOTES.md holds predictions and outcomes."""
