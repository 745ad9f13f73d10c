"""``python -m coordinator.client``."""

from __future__ import annotations

from qspec.cli import run_program


def main() -> int:
    """Import late, so that Ctrl-C is clean from the first moment on."""
    from coordinator.client.main import run

    return run()


if __name__ == "__main__":
    run_program(main)
