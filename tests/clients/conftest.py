"""One live server, one scripted server and one build of each client for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import cpp, typescript
from tests.clients.example import Example
from tests.clients.go import go_module
from tests.clients.live_server import live_server
from tests.clients.scripted_server import scripted_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a whole server with a tiny model."""
    with live_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="session")
def scripted() -> Iterator[str]:
    """The address of a server that does what the prompt says."""
    with scripted_server() as address:
        yield address


BUILDS: dict[str, Callable[[Path], list[str]]] = {
    "go": lambda scratch: go_module(scratch).build_example(),
    "typescript": lambda _: typescript.build_example(),
    "cpp": lambda _: cpp.build_example(),
}
"""How the streaming example of each client is built, in a directory for what comes of it; gives its command line."""


@pytest.fixture(scope="session", params=BUILDS)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The streaming example of each client, built anew."""
    return Example(tuple(BUILDS[request.param](tmp_path_factory.mktemp(request.param))))
