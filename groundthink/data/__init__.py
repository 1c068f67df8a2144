"""Text to batches."""

from groundthink.data.corpus import Corpus, load_corpus
from groundthink.data.loader import HeldOut, TextSource, split_tokens
from groundthink.data.packing import IGNORE, Batch, pack
from groundthink.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "IGNORE",
    "BPETokenizer",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "HeldOut",
    "TextSource",
    "Tokenizer",
    "load_corpus",
    "load_tokenizer",
    "pack",
    "split_tokens",
]
