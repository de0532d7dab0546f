"""The Lua scripts of this package."""

import hashlib
from importlib.resources import files

__all__ = ["Script"]


class Script:
    """A Lua script; Redis knows it by the SHA-1 of its text."""

    __slots__ = ("sha", "text")

    def __init__(self, file: str) -> None:
        self.text = files("kernel.redis").joinpath(file).read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()
