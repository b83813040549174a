"""Keys and tags as ipt_pkd and nf-pkd read them, where that differs from how a rule file is read."""

from __future__ import annotations

import re

from nfpkd.rules.model import KEY_LENGTH, TAG_LENGTH, format_tag


def read_key(text: str) -> str:
    """Return how a rule file has to name the key that *text* is for them."""
    raw = _read(text, KEY_LENGTH)
    same = text.encode() == raw and text[:2] not in ("0x", "0X")
    return text if same else "0x" + (raw.rstrip(b"\0").hex() or "00")


def read_tag(text: str) -> str:
    """Return how a rule file has to name the tag that *text* is for them."""
    return format_tag(_read(text, TAG_LENGTH).ljust(TAG_LENGTH, b"\0"))


def _read(text: str, length: int) -> bytes:
    """Return the bytes of *text*, cut to *length*; hex only behind a lowercase 0x, and up to what is no digit."""
    if not text.startswith("0x"):
        return text.encode()[:length]
    found = re.match("[0-9a-fA-F]*", text[2:])
    digits = found[0] if found else ""
    return bytes.fromhex(digits + "0" * (len(digits) % 2))[:length]
