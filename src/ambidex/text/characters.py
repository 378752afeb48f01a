"""Bytes and characters: valid UTF-8, and where it may be cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def utf8(text: str) -> bytes:
    """UTF-8 of a string. Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Valid UTF-8, in chunks of any length, cut anew into pieces of at most ``size`` bytes.

    A piece ends before a line end that follows a visible ASCII character: there every BPE pre-tokenizer that
    keeps line ends apart from what precedes them cuts too, so the pieces' tokens are the whole text's tokens.
    Where there is no such place it ends between two characters. The pieces do not depend on the chunks.
    """
    held = b""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > size:
            stop = _place_to_cut(held, start, start + size)
            yield held[start:stop]
            start = stop
        held = held[start:]
    if held:
        yield held


def _place_to_cut(text: bytes, start: int, stop: int) -> int:
    line_end = text.rfind(b"\n", start + 1, stop)
    while line_end > start:
        if 0x21 <= text[line_end - 1] <= 0x7E:
            return line_end
        line_end = text.rfind(b"\n", start + 1, line_end)
    while is_continuation(text[stop]):
        stop -= 1
    return stop


def is_continuation(byte: int) -> bool:
    """Whether a byte of UTF-8 goes on with a character that an earlier byte began."""
    return byte & 0xC0 == 0x80
