"""What nfpkd promises of hostile input, and what it is called when it does not hold."""

from __future__ import annotations


class BrokenPromise(Exception):  # noqa: N818  (it is not an error of this program)
    """nfpkd did something with an input that it never should."""


def promise(kept: bool, text: str) -> None:
    """Raise BrokenPromise unless what *text* says was *kept*."""
    if not kept:
        raise BrokenPromise(text)
