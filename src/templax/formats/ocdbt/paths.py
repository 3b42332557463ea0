"""The names of files in a database."""

from __future__ import annotations

from ...errors import Corrupted

MAX_NAME = 65535
"""Maximum length of a name, in bytes."""


def confine_path(path: bytes) -> str:
    """Decodes a relative path.

    Raises:
        Corrupted: It is not UTF-8, or leads outside the directory that it is relative to.
    """
    try:
        text = path.decode()
    except UnicodeDecodeError as error:
        raise Corrupted(f"Expected a file name in UTF-8, got {path[:64]!r}") from error
    # Backslashes and drives such as `C:` lead elsewhere on Windows.
    outside = any(p in ("", ".", "..") for p in text.split("/")) or "\\" in text or ":" in text
    if len(path) > MAX_NAME or "\0" in text or outside:
        raise Corrupted(f"Expected a data file inside the checkpoint, got {text[:256]!r}")
    return text
