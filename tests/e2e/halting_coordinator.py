"""``python -m coordinator`` over workers that can be stopped in the middle of their work (``halting_worker``).

A drafter is taken for hung after two seconds, so that tests need not wait longer.
"""

from __future__ import annotations

import coordinator.connections
from coordinator.__main__ import main
from coordinator.stack import MODULES
from qspec.cli import run_program

if __name__ == "__main__":
    for role in MODULES:
        MODULES[role] = "tests.e2e.halting_worker"
    coordinator.connections.DRAFT_TIMEOUT_S = 2.0
    run_program(main)
