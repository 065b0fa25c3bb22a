"""Associative recall: pairs are told, and asked for later. In: an index. Out: a document of words.

    k17 v5 k2 v90 k33 v8 ... k33 v8 k17 v5 k33 v8 ...

The first half tells the pairs, the second asks for them, with answers; the answers alone count in
the loss, so everything that is learned is learned for remembering. This is the task of many queries
of Arora et al. 2023 (Zoology, arXiv 2312.04927). How many pairs ago what is asked last stood, is
log-uniform (there: a power law), and a pair may be asked again, so that to know which answers are
left is of no help.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.feed.documents import Documents
from mmpredict.schema import Batch, Clip, Modality, TextPiece, Tokens
from mmpredict.sequence import interleave
from mmpredict.tokens import TextTokens

SPLITS = ("train", "val", "test")
UNKNOWN = "?"  # what a word outside the vocabulary becomes
FEWEST_IDS = 258  # that a vocabulary of kind bpe may have


class Recall(ClipDataModule):
    """Pairs of a key and a value, then as many questions: a key, and its value.

    Args:
        num_keys, num_values: words of the vocabulary; in a document none comes in two pairs.
        pairs: how many pairs a document has; each number gets the same share of all answers, since
            what is learned on short documents opens the long ones.
        test_pairs: the same for the test documents (more than in training shows how far what was
            learned carries); () for those of the training.
        train_documents: documents of an epoch; each epoch has new ones.
        val_documents, test_documents: held-out documents.
        loading: how documents become batches; a document of n pairs has 4 n positions.
        seed: of the documents and their order.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        *,
        num_keys: int = 128,
        num_values: int = 128,
        pairs: tuple[int, ...] = (16, 32, 64),
        test_pairs: tuple[int, ...] = (),
        train_documents: int = 4000,
        val_documents: int = 48,
        test_documents: int = 192,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        keys = [f"k{n}" for n in range(num_keys)]
        values = [f"v{n}" for n in range(num_values)]
        text = word_tokens([*keys, *values])
        super().__init__(audio=None, video=None, text=text, loading=loading, seed=seed)
        self.num_keys, self.num_values = num_keys, num_values
        self.pairs, self.test_pairs = tuple(pairs), tuple(test_pairs) or tuple(pairs)
        self.sizes = {"train": train_documents, "val": val_documents, "test": test_documents}
        asked = (*self.pairs, *self.test_pairs)
        if not self.pairs or min(asked) < 1 or max(asked) > min(num_keys, num_values):
            raise ValueError(
                f"data.pairs={list(self.pairs)} and data.test_pairs={list(self.test_pairs)} must "
                f"lie between 1 and the number of keys and values, {num_keys} and {num_values}"
            )
        if 4 * max(asked) > self.loading.context_length:
            raise ValueError(
                f"{max(asked)} pairs are {4 * max(asked)} positions, data.loading.context_length "
                f"is {self.loading.context_length}; raise it, or take fewer pairs"
            )

    def documents(self, split: Split) -> Documents:
        return _Pairs(self, split)

    def corpus(self) -> Iterable[str]:
        """Nothing: the vocabulary is known."""
        return ()


class _Pairs(Documents):
    def __init__(self, module: Recall, split: Split) -> None:
        self.module, self.split = module, split
        self.choices = module.test_pairs if split == "test" else module.pairs

    def __len__(self) -> int:
        return self.module.sizes[self.split]

    def name(self, index: int) -> str:
        return f"{self.split} pairs {index}"

    def length(self, epoch: int, index: int) -> int:
        return 4 * self._num_pairs(self._random(epoch, index), index)

    def document(self, epoch: int, index: int) -> Batch:
        words = self._words(epoch, index)
        ids, _ = self.module.codecs.text.ids_of(" ".join(words))
        untimed = torch.full((len(ids),), float("nan"), dtype=torch.float64)
        row = interleave([Tokens(Modality.TEXT, torch.tensor(ids), untimed)], self.module.layout)
        place = torch.arange(len(ids))
        answers = (place >= len(ids) // 2) & (place % 2 == 1)
        return replace(row, loss_mask=answers[None])

    def clip(self, epoch: int, index: int) -> Clip:
        return Clip(texts=(TextPiece(" ".join(self._words(epoch, index))),), name=self.name(index))

    def _random(self, epoch: int, index: int) -> np.random.Generator:
        return random_of(self.module.seed, self.split, epoch, index)

    def _num_pairs(self, random: np.random.Generator, index: int) -> int:
        """Drawn for training; held-out documents take turns."""
        if self.split != "train":
            return self.choices[index % len(self.choices)]
        share = 1 / np.array(self.choices)
        return int(random.choice(self.choices, p=share / share.sum()))

    def _words(self, epoch: int, index: int) -> list[str]:
        random = self._random(epoch, index)
        count = self._num_pairs(random, index)
        keys = random.choice(self.module.num_keys, count, replace=False)
        values = random.choice(self.module.num_values, count, replace=False)
        last = {pair: pair for pair in range(count)}
        said = list(range(count))
        for now in range(count, 2 * count):
            said.append(draw_again(last, now, random))
            last[said[-1]] = now
        return [word for pair in said for word in (f"k{keys[pair]}", f"v{values[pair]}")]


def draw_again(last: Mapping[int, int], now: int, random: np.random.Generator) -> int:
    """That of the things which last stood about so long ago as a log-uniform number says."""
    when = now - math.exp(random.uniform(0, math.log(now)))
    return min(last, key=lambda thing: abs(last[thing] - when))


def random_of(seed: int, split: Split, epoch: int, index: int) -> np.random.Generator:
    """All randomness of one document; held-out documents are the same in every epoch."""
    return np.random.default_rng([seed, SPLITS.index(split), epoch * (split == "train"), index])


def word_tokens(words: Sequence[str]) -> TextTokens:
    """A vocabulary of whole words between white space; every word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: number for number, word in enumerate((UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = max(FEWEST_IDS, len(ids) + 1)  # and END
    return TextTokens(kind="bpe", vocab_size=size, vocabulary=tokenizer.to_str())
