"""The sockets of the service: every address of a host, one port, and errors that name the variable."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from handlers.server.listening import AddressInUse, bind
from handlers.settings import SettingsError


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes the sockets of a test."""
    with ExitStack() as stack:
        yield stack


def connects(address: str, port: int) -> bool:
    """Return True if this address takes a connection."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        return client.connect_ex((address, port)) == 0


@pytest.mark.parametrize(
    ("host", "reached"),
    [("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["127.0.0.1"]), ("::", ["127.0.0.1", "::1"]), ("::1", ["::1"])],
)
def test_the_addresses_of_a_host(stack: ExitStack, host: str, reached: list[str]) -> None:
    """Each host listens on its own addresses, and `::` on those of IPv4 too."""
    sockets = [stack.enter_context(bound) for bound in bind(host, 0)]
    for bound in sockets:
        bound.listen()
    [port] = {bound.getsockname()[1] for bound in sockets}
    assert [address for address in ("127.0.0.1", "::1") if connects(address, port)] == reached


def test_a_bound_socket_takes_no_connections(stack: ExitStack) -> None:
    """Until the server listens, connections are refused, so that no client waits for a service that is starting."""
    [bound] = [stack.enter_context(bound) for bound in bind("127.0.0.1", 0)]
    assert not connects("127.0.0.1", bound.getsockname()[1])


def test_several_addresses_have_one_port(stack: ExitStack) -> None:
    """A name with several addresses gets the same free port for all of them."""
    sockets = [stack.enter_context(bound) for bound in bind("localhost", 0)]
    assert len({bound.getsockname()[1] for bound in sockets}) == 1


@pytest.mark.parametrize("host", ["256.0.0.1", "192.0.2.1", "2001:db8::1", "a b", "x" * 300, "\N{SNOWMAN}", "a\nb"])
def test_a_host_that_is_not_here(host: str) -> None:
    """A host that is not an address of this machine is an error of HOST, on one line."""
    with pytest.raises(SettingsError) as refused:
        bind(host, 0)
    assert str(refused.value).startswith("HOST=")
    assert "127.0.0.1" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_port_in_use(stack: ExitStack) -> None:
    """A port on which another process listens is no error of the settings."""
    [bound] = [stack.enter_context(bound) for bound in bind("127.0.0.1", 0)]
    bound.listen()
    port = bound.getsockname()[1]
    with pytest.raises(AddressInUse, match=str(port)):
        bind("127.0.0.1", port)


@pytest.mark.parametrize("variable", ["PORT", "INTERNAL_PORT"])
def test_a_port_that_is_not_permitted(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A port that this user may not use is an error of the variable that set it."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SettingsError, match=f"^{variable}=80: .*over 1023"):
        bind("127.0.0.1", 80, variable)
