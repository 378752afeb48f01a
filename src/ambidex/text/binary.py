"""How a file that is no text is recognised, in words that a user can act on."""

from __future__ import annotations

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip data (give it a name that ends in .gz)"),
    (b"BZh", "bzip2 data (unpack it first: bzip2 -d)"),
    (b"\xfd7zXZ\x00", "xz data (unpack it first: xz -d)"),
    (b"\x28\xb5\x2f\xfd", "zstandard data (unpack it first: zstd -d)"),
    (b"PK\x03\x04", "a ZIP archive (unpack it first: unzip)"),
    (b"PAR1", "Parquet data (give it a name that ends in .parquet)"),
    (b"%PDF-", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x7fELF", "a program (ELF)"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xfe\0\0", "UTF-32 text (convert it first: iconv -f UTF-32 -t UTF-8)"),
    (b"\0\0\xfe\xff", "UTF-32 text (convert it first: iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "UTF-16 text (convert it first: iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text (convert it first: iconv -f UTF-16 -t UTF-8)"),
)
_MARKS = (
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xff\xfe\0\0",
    b"\0\0\xfe\xff",
)  # and nothing behind it
_TEXT_CONTROLS = b"\t\n\r\f\b\x1b"
_CONTROLS = bytes(sorted(set(range(32)) - set(_TEXT_CONTROLS)))


def binary_sign(head: bytes) -> str:
    """By what the first bytes of a file show that it is no text, or "" where they may well be text.

    A NUL byte decides, as it does for git and grep; so do the beginnings of well-known formats, and more than
    one control character in twenty. Text in an old eight-bit encoding passes: it is text, though no UTF-8.
    """
    if not head:
        return "empty"
    if head in _MARKS:
        return "empty but for a byte order mark"
    for beginning, meaning in _BEGINNINGS:
        if head.startswith(beginning) and not (beginning == b"BZh" and head[3:4] not in b"123456789"):
            return meaning
    if (place := head.find(b"\0")) >= 0:
        return f"binary data (a NUL byte at byte {place})"
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls * 20 > len(head):
        return f"binary data ({controls} control characters in the first {len(head)} bytes)"
    return ""
