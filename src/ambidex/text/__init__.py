"""Everything between ``--data`` and a batch: sources, readers, corpus, tokenizers, token files, batches.

No torch.
"""

from ambidex.text.batches import IGNORED, Batches, validation_batches
from ambidex.text.cache import default_cache
from ambidex.text.corpus import Summary
from ambidex.text.loading import load_tokenizer
from ambidex.text.streaming import StreamDecoder
from ambidex.text.tokenizer import Tokenizer
from ambidex.text.tokens import Tokens, prepare

__all__ = [
    "IGNORED",
    "Batches",
    "StreamDecoder",
    "Summary",
    "Tokenizer",
    "Tokens",
    "default_cache",
    "load_tokenizer",
    "prepare",
    "validation_batches",
]
