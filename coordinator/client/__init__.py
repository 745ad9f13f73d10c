"""The command-line client: ``python -m coordinator.client --prompt "…"``."""

from __future__ import annotations
