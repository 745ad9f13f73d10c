"""Who a call counts for."""

from __future__ import annotations

import pytest

from coordinator.callers import client_of
from qspec.errors import InvalidInput


@pytest.mark.parametrize(("peer", "client"), [
    ("ipv4:10.0.0.7:50123", "ipv4:10.0.0.7"),
    ("ipv6:%5B::1%5D:50123", "ipv6:%5B::1%5D"),
    ("unix:", "unix:"),
    ("unix:/run/c:1.sock", "unix:/run/c:1.sock"),
])
def test_host_without_its_port(peer: str, client: str) -> None:
    assert client_of((), peer) == client


def test_name_in_the_metadata_goes_before_the_host() -> None:
    metadata = (("user-agent", "x"), ("qspec-client-id", "team-a"))
    assert client_of(metadata, "ipv4:10.0.0.7:1") == "id:team-a"
    assert client_of((("qspec-client-id", b"team-a"),), "unix:") == "id:team-a"


def test_a_key_decides_and_names_behind_one_are_not_those_behind_another() -> None:
    named = (("qspec-client-id", "team-a"),)
    assert client_of((), "ipv4:10.0.0.7:1", "alice") == client_of((), "unix:", "alice") == "key:alice"
    assert client_of(named, "unix:", "alice") == client_of(named, "ipv4:10.0.0.7:1", "alice")
    assert len({client_of(named, "unix:", key) for key in ("alice", "bob", None)} | {"key:alice"}) == 4


@pytest.mark.parametrize("name", ["", " ", "a b", "x" * 129, b"\xff"])
def test_name_that_cannot_be_used_is_refused(name: str | bytes) -> None:
    with pytest.raises(InvalidInput, match="metadata qspec-client-id: must"):
        client_of((("qspec-client-id", name),), "unix:")


def test_no_name_is_a_host() -> None:
    assert client_of((("qspec-client-id", "unix:"),), "unix:") != client_of((), "unix:")
