"""What is measured on a GPU: ``kernels``, ``sharing``, ``decode``. NOTES.md holds predictions and outcomes."""
