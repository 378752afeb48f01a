"""Text that is still arriving: shown as far as its characters are complete."""

from __future__ import annotations

import codecs

from ambidex.text.tokenizer import Tokenizer


class StreamDecoder:
    """Tokens in, text out, one token at a time: only characters that are complete are shown.

    What can no longer become a character is shown as U+FFFD, as soon as that is certain.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes, often none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left of a character that never came to its end, as U+FFFD."""
        return self._decoder.decode(b"", final=True)
