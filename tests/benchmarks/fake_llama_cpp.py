"""A package that stands in for llama-cpp-python: it counts upwards from the prompt's last token."""

from __future__ import annotations

from pathlib import Path

_SOURCE = '''
__version__ = "0.0.1"


class Llama:
    def __init__(self, model_path, *, n_ctx, n_threads, n_threads_batch, verbose):
        with open(model_path, "rb") as file:
            assert file.read(4) == b"GGUF"
        assert n_threads == n_threads_batch and not verbose
        self.free = self.n_ctx = n_ctx

    def reset(self):
        self.free = self.n_ctx

    def generate(self, tokens, *, temp):
        assert temp == 0
        self.free -= len(tokens)
        token = tokens[-1]
        while True:
            assert self.free > 0, "more than the context holds"
            self.free -= 1
            token += 1
            yield token


def llama_print_system_info():
    return b"CPU : FAKE = 1 | "
'''


def write_fake_llama_cpp(directory: Path) -> None:
    """Write the package into ``directory``, for ``PYTHONPATH``."""
    (directory / "llama_cpp").mkdir(parents=True)
    (directory / "llama_cpp" / "__init__.py").write_text(_SOURCE, "utf-8")
