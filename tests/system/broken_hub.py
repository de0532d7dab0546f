"""The service with a bug in its hub, to test what a client sees of it: `python -m tests.system.broken_hub`."""

import sys

from handlers.__main__ import main
from kernel.clients import Client
from kernel.clients.hub import Hub

_receive = Hub.receive


def receive(self: Hub, client: Client, message: str | bytes) -> None:
    """Fail with an error that quotes the message, unless it is a ping."""
    if message != "ping":
        raise ValueError(message)
    _receive(self, client, message)


if __name__ == "__main__":
    Hub.receive = receive  # type: ignore[method-assign]
    sys.exit(main())
