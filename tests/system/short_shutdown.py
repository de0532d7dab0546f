"""The service with a short wait for requests in flight at its end: `python -m tests.system.short_shutdown serve`."""

import sys

from handlers.__main__ import main
from handlers.server import server

server.REQUESTS_SECONDS = 1

if __name__ == "__main__":
    sys.exit(main())
