"""Holds the import rules that the architecture rests on.

1. ``qspec`` imports no service; ``drafter`` and ``verifier`` import ``qspec`` only; ``coordinator`` reaches the workers
   through the interfaces of ``qspec``. Nothing that is shipped imports tests, benchmarks or tools.
2. The coordinator and its client start quickly: they import no tensor library, neither themselves (anywhere in a
   function either) nor through a module of ours (at module level).
3. Only the coordinator's supervisor starts processes.

The rules are read from the syntax tree, so nothing has to be imported or installed. Imports under ``TYPE_CHECKING``
are for the type checker alone and count for rule 1 only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ALLOWED = {
    "qspec": {"qspec"},
    "drafter": {"qspec", "drafter"},
    "verifier": {"qspec", "verifier"},
    "coordinator": {"qspec", "coordinator"},
}
"""Package of ours → packages of ours that it may import."""
OURS = {*ALLOWED, "benchmarks", "tests", "tools"}
SLOW = {"torch", "transformers", "accelerate", "bitsandbytes", "gguf"}
"""Libraries that take seconds to import, or bring torch along."""
FAST_PACKAGE = "coordinator"
PROCESS_STARTER = Path("coordinator/supervisor.py")
PROCESS_MODULES = {"subprocess", "multiprocessing", "torch.multiprocessing", "pty"}
PROCESS_FUNCTIONS = {
    "os": ("fork", "forkpty", "system", "popen", "posix_spawn", "posix_spawnp", "exec", "spawn"),
    "asyncio": ("create_subprocess_exec", "create_subprocess_shell"),
    "concurrent.futures": ("ProcessPoolExecutor",),
}
"""Module → names, or for ``exec`` and ``spawn`` beginnings of names, that start or replace a process."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One broken rule: where, and what to do about it."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: ``module`` absolute, ``name`` what is taken from it (None: the module itself)."""

    module: str
    name: str | None
    line: int
    at_module_level: bool
    for_types_only: bool

    @property
    def candidates(self) -> tuple[str, ...]:
        """The modules that this may load: the module, and the name when that is a module itself."""
        return (self.module,) if self.name is None else (self.module, f"{self.module}.{self.name}")


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file of ours; ``path`` is relative to the root, ``module`` its dotted name."""

    path: Path
    module: str
    tree: ast.Module
    imports: tuple[Import, ...]


def is_within(module: str, package: str) -> bool:
    """Whether ``module`` is ``package`` or lies inside it."""
    return module == package or module.startswith(package + ".")


def is_type_checking(test: ast.expr) -> bool:
    """Whether an ``if`` asks for ``TYPE_CHECKING``."""
    return isinstance(test, ast.Name | ast.Attribute) and ast.unparse(test).split(".")[-1] == "TYPE_CHECKING"


def read_imports(node: ast.AST, package: str, module_level: bool = True, types: bool = False) -> Iterator[Import]:
    """All imports below ``node``, relative ones resolved against ``package`` (the package that holds the file)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, None, child.lineno, module_level, types)
        elif isinstance(child, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            module = ".".join([*parents, *([child.module] if child.module else [])])
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, module_level, types)
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            for statement in child.body:
                yield from read_imports(ast.Module([statement], []), package, module_level, True)
            for statement in child.orelse:
                yield from read_imports(ast.Module([statement], []), package, module_level, types)
        else:
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from read_imports(child, package, module_level and not in_function, types)


def read_sources(root: Path) -> dict[str, Source]:
    """Every Python file of the shipped packages below ``root``, by module name."""
    sources = {}
    for package in ALLOWED:
        for file in sorted((root / package).rglob("*.py")):
            path = file.relative_to(root)
            parts = path.with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(path))
            holder = module if is_package else module.rpartition(".")[0]
            sources[module] = Source(path, module, tree, tuple(read_imports(tree, holder)))
    return sources


def check_packages(source: Source) -> Iterator[Finding]:
    """Rule 1: no package imports one that it must not know."""
    own = source.module.split(".")[0]
    for entry in source.imports:
        other = entry.module.split(".")[0]
        if other in OURS and other not in ALLOWED[own]:
            allowed = ", ".join(sorted(ALLOWED[own]))
            yield Finding(source.path, entry.line, f"{own} must not import {other} (allowed: {allowed})")


def check_start_up(sources: dict[str, Source]) -> Iterator[Finding]:
    """Rule 2: no slow library is reached from the coordinator."""
    reached_by = {module: module for module in sources if is_within(module, FAST_PACKAGE)}
    pending = list(reached_by)
    while pending:
        source = sources[pending.pop()]
        in_fast_package = is_within(source.module, FAST_PACKAGE)
        for entry in source.imports:
            if entry.for_types_only or not (entry.at_module_level or in_fast_package):
                continue
            slow = {candidate for candidate in entry.candidates for name in SLOW if is_within(candidate, name)}
            slow |= {c for c in entry.candidates if c == "safetensors.torch"}
            if slow:
                chain = reached_by[source.module]
                via = "" if chain == source.module else f" (reached from {chain})"
                yield Finding(source.path, entry.line, f"the coordinator must not load {min(slow)}{via}")
            for candidate in entry.candidates:
                parts = candidate.split(".")
                for depth in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b as well
                    module = ".".join(parts[:depth])
                    if module in sources and module not in reached_by:
                        reached_by[module] = reached_by[source.module]
                        pending.append(module)


def starts_process(module: str, name: str) -> bool:
    """Whether ``module.name`` starts or replaces a process."""
    return any(
        name == forbidden or (forbidden in ("exec", "spawn") and name.startswith(forbidden))
        for forbidden in PROCESS_FUNCTIONS.get(module, ())
    )


def check_processes(source: Source) -> Iterator[Finding]:
    """Rule 3: no process is started outside the supervisor."""
    if source.path == PROCESS_STARTER:
        return
    for entry in source.imports:
        by_module = any(is_within(candidate, name) for candidate in entry.candidates for name in PROCESS_MODULES)
        if by_module or (entry.name is not None and starts_process(entry.module, entry.name)):
            yield Finding(source.path, entry.line, f"only {PROCESS_STARTER} starts processes: {entry.candidates[-1]}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and starts_process(ast.unparse(node.value), node.attr):
            yield Finding(source.path, node.lineno, f"only {PROCESS_STARTER} starts processes: {ast.unparse(node)}")


def find_violations(root: Path) -> list[Finding]:
    """All broken rules below ``root``, in the order of files and lines."""
    sources = read_sources(root)
    findings = set(check_start_up(sources))
    for source in sources.values():
        findings.update(check_packages(source), check_processes(source))
    return sorted(findings)


def main() -> int:
    """Print what breaks a rule; the exit status is 1 when anything does."""
    if findings := find_violations(ROOT):
        print(*findings, sep="\n", file=sys.stderr)
        return 1
    print("Import rules hold.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
