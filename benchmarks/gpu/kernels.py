"""``python -m benchmarks.gpu.kernels …`` is ``python -m benchmarks.gpu --section kernels …``."""

from __future__ import annotations

import sys

from benchmarks.gpu.__main__ import main

if __name__ == "__main__":
    if "--section" not in sys.argv:
        sys.argv[1:1] = ["--section", "kernels"]
    sys.exit(main())
