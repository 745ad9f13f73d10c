"""Quantised speculative decoding: the core that drafter, verifier and coordinator share. Imports no service."""
