"""The demo's tokenizer: a byte-level CLIP vocabulary with whole-word tokens for common words.

Any other word, a made-up trigger word too, is spelled out in letters and known pieces.
"""

from __future__ import annotations

from itertools import pairwise

from transformers import CLIPTokenizer

from .world import COLOURS, SCENES, SUBJECTS

MAX_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"

_COMMON = """
the of and to is it that was for with as his her be this have from or one had by word but not what all were we when
your can said there use an each which she do how their if will up other about out many then them these so some make
like him into time has look two more write go see number no way could people my than first water been who its now find
long down day did get come made may part photo picture drawing painting sketch image portrait style art small big large
little bright dark old new beautiful black brown grey gray gold silver cyan light sky sun moon stars rain cloud forest
mountain river road city street grass dog bird horse man woman child girl boy face eye hand person food cake apple ball
boy book chair table lamp door window train plane bus bike ship king queen castle robot dragon ghost
"""


def build() -> CLIPTokenizer:
    """The tokenizer, the same on every call: 256 bytes, 256 bytes that end a word, merges, two special tokens."""
    words = [w for name in (*SUBJECTS, *COLOURS, *SCENES) for w in name.split()]
    letters = list(_byte_letters())
    merges = _merges(dict.fromkeys(["a", *words, *_COMMON.split()]))
    tokens = [*letters, *(f"{c}</w>" for c in letters), *dict.fromkeys(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, merges, model_max_length=MAX_TOKENS)


def _byte_letters() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE gives the 256 bytes (Radford et al., 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def _merges(words: dict[str, None]) -> list[tuple[str, str]]:
    """Merges, in order, after which every one of the words is a single token."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            pair = min(pairs, key=lambda p: ranks.get(p, len(ranks)))
            ranks.setdefault(pair, len(ranks))
            at = pairs.index(pair)
            pieces[at : at + 2] = [pair[0] + pair[1]]
    return list(ranks)
