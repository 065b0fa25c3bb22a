"""Spoken words, clean or buried in noise, each followed by its name. In: an index. Out: a document.

A word that was heard before is easier to recognise, even when it was heard well before what
attention still sees: whoever has just been told of cucumbers understands a mumbled "cucumber"
(Hinton's example for a memory that is slower than activity and faster than learning; fast weights
as in Ba, Hinton et al. 2016, arXiv 1610.06258).

Shapes: W words of the vocabulary, N words of a document, S samples of a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.feed.documents import Documents
from datamodules.recall import draw_again, random_of, word_tokens
from mmpredict.schema import Batch, Clip, Modality, TextPiece, Tokens
from mmpredict.sequence import interleave
from mmpredict.tokens import MelChunks

VOICE_HZ = 110.0  # of the one speaker
# Formants: lowest and highest centre, and bandwidth, in Hz; about those of vowels.
FORMANTS_HZ = ((250.0, 900.0, 90.0), (950.0, 2200.0, 120.0), (2300.0, 3500.0, 160.0))
EDGE_S = 0.008  # a word swells and fades for so long
LOUDNESS = 0.05  # root mean square of a word
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
MOST_WORDS = len(SYLLABLES) ** 2


@dataclass(frozen=True)
class Speech:
    """What is said, and how clearly.

    Args:
        vocabulary: different words.
        words: of a document.
        word_s: seconds of a word; one chunk of sound.
        repeat_share: of the words that were heard earlier in the document; how long ago is
            log-uniform. The others are new to the document, as long as there are any.
        noisy_share: of the words that are buried in noise.
        clean_db, noisy_db: of word over (white) noise.
        gain_db: most by which a word is louder or softer than usual.
    """

    vocabulary: int = 200
    words: int = 128
    word_s: float = 0.08
    repeat_share: float = 0.85
    noisy_share: float = 0.5
    clean_db: float = 20.0
    noisy_db: float = 0.0
    gain_db: float = 3.0

    def __post_init__(self) -> None:
        if self.words < 1 or not 1 <= self.vocabulary <= MOST_WORDS:
            raise ValueError(
                f"data.speech: words={self.words} must be at least 1, vocabulary="
                f"{self.vocabulary} between 1 and {MOST_WORDS} (the names of two syllables)"
            )
        if not (0 <= self.repeat_share <= 1 and 0 <= self.noisy_share <= 1):
            raise ValueError(
                f"data.speech: repeat_share={self.repeat_share} and "
                f"noisy_share={self.noisy_share} are shares, from 0 to 1"
            )


class Cucumber(ClipDataModule):
    """Words as sound, one chunk each, and right behind each its name as text.

    The names alone count in the loss: all of them in training, those of noisy words when it is
    validated and tested.

    Args:
        speech: what is said.
        num_mels, hops: of the sound's spectra; see `MelChunks`.
        sample_rate: Hz.
        train_documents: documents of an epoch; each epoch has new ones.
        val_documents, test_documents: held-out documents.
        test_words: words of a test document, to see how far the memory carries; 0 for as many as
            in training.
        loading: how documents become batches; a word takes 2 positions.
        seed: of the vocabulary, the documents and their order.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        *,
        speech: Speech = Speech(),
        num_mels: int = 16,
        hops: int = 4,
        sample_rate: int = 8000,
        train_documents: int = 4000,
        val_documents: int = 32,
        test_documents: int = 64,
        test_words: int = 0,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        names, self._spoken_WS = vocabulary(speech, sample_rate, seed)
        audio = MelChunks(
            sample_rate=sample_rate, channels=1, chunk_s=speech.word_s, hops=hops, num_mels=num_mels
        )
        text = word_tokens(names)
        super().__init__(audio=audio, video=None, text=text, loading=loading, seed=seed)
        self.names, self.speech = names, speech
        self.test_speech = replace(speech, words=test_words or speech.words)
        self.sizes = {"train": train_documents, "val": val_documents, "test": test_documents}
        longest = 2 * max(speech.words, self.test_speech.words)
        if longest > self.loading.context_length:
            raise ValueError(
                f"{longest // 2} words are {longest} positions, data.loading.context_length is "
                f"{self.loading.context_length}; raise it, or take fewer words"
            )

    def documents(self, split: Split) -> Documents:
        return _Talks(self, split)

    def corpus(self) -> Iterable[str]:
        """Nothing: the vocabulary is known."""
        return ()


class _Talks(Documents):
    def __init__(self, module: Cucumber, split: Split) -> None:
        self.module, self.split = module, split
        self.speech = module.test_speech if split == "test" else module.speech

    def __len__(self) -> int:
        return self.module.sizes[self.split]

    def name(self, index: int) -> str:
        return f"{self.split} talk {index}"

    def length(self, epoch: int, index: int) -> int:
        return 2 * self.speech.words

    def document(self, epoch: int, index: int) -> Batch:
        words_N, noisy_N, random = self._drawn(epoch, index)
        codecs = self.module.codecs
        sound = codecs.audio.encode(self._clip(words_N, noisy_N, random))
        ids, _ = codecs.text.ids_of(" ".join(self.module.names[w] for w in words_N))
        names = Tokens(Modality.TEXT, torch.tensor(ids), sound.end_s)
        row = interleave([sound, names], self.module.layout)
        counts_N = torch.ones(len(ids), dtype=torch.bool)
        if self.split != "train":
            counts_N = torch.from_numpy(noisy_N)
        is_name = row.modality == Modality.TEXT
        return replace(row, loss_mask=is_name.masked_scatter(is_name, counts_N))

    def clip(self, epoch: int, index: int) -> Clip:
        words_N, noisy_N, random = self._drawn(epoch, index)
        said = self._clip(words_N, noisy_N, random)
        each = self.speech.word_s
        texts = tuple(
            TextPiece(self.module.names[w], n * each, (n + 1) * each) for n, w in enumerate(words_N)
        )
        return replace(said, texts=texts, name=self.name(index))

    def _drawn(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
        """Which words, which of them noisy, and the randomness that is left for the sound."""
        random = random_of(self.module.seed, self.split, epoch, index)
        words_N = draw_words(self.speech, random)
        return words_N, random.random(len(words_N)) < self.speech.noisy_share, random

    def _clip(self, words_N: np.ndarray, noisy_N: np.ndarray, random: np.random.Generator) -> Clip:
        speech = self.speech
        gain_N = 10 ** (random.uniform(-speech.gain_db, speech.gain_db, len(words_N)) / 20)
        ratio_N = 10 ** (np.where(noisy_N, speech.noisy_db, speech.clean_db) / 20)
        said_NS = self.module._spoken_WS[words_N]
        noise_NS = random.standard_normal(said_NS.shape, dtype=np.float32)
        wave = (said_NS * LOUDNESS + noise_NS * (LOUDNESS / ratio_N)[:, None]) * gain_N[:, None]
        waveform_CS = torch.from_numpy(wave.reshape(1, -1).astype(np.float32)).clamp(-1, 1)
        return Clip(waveform_CS=waveform_CS, sample_rate=self.module.codecs.audio.sample_rate)


def draw_words(speech: Speech, random: np.random.Generator) -> np.ndarray:
    """(N,) numbers of words: new to the document, or that which was last heard about so long ago
    as a log-uniform number of words says."""
    new = list(random.permutation(speech.vocabulary))
    last_heard: dict[int, int] = {}
    words: list[int] = []
    for now in range(speech.words):
        again = random.random() < speech.repeat_share
        if last_heard and (again or not new):
            word = draw_again(last_heard, now, random)
        else:
            word = int(new.pop())
        words.append(word)
        last_heard[word] = now
    return np.array(words)


def vocabulary(speech: Speech, sample_rate: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Names of the words, and (W, S) float32 how they sound, at root mean square 1: harmonics of
    one voice under three formants, each of which glides from one frequency to another."""
    random = np.random.default_rng([seed, speech.vocabulary])
    drawn = random.choice(MOST_WORDS, speech.vocabulary, replace=False)
    names = [SYLLABLES[n // len(SYLLABLES)] + SYLLABLES[n % len(SYLLABLES)] for n in drawn]

    samples = round(speech.word_s * sample_rate)
    time_S = np.arange(samples) / sample_rate
    along_S = np.linspace(0, 1, samples)
    harmonic_H = VOICE_HZ * np.arange(1, int(sample_rate / 2 / VOICE_HZ))
    phase_H = random.uniform(0, 2 * np.pi, len(harmonic_H))
    tone_HS = np.sin(2 * np.pi * harmonic_H[:, None] * time_S + phase_H[:, None])
    edge_S = np.minimum(1, np.minimum(time_S, time_S[::-1]) / EDGE_S)
    spoken_WS = np.empty((speech.vocabulary, samples), np.float32)
    for word in range(speech.vocabulary):
        loud_HS = np.zeros_like(tone_HS)
        for low, high, width in FORMANTS_HZ:
            start, end = random.uniform(low, high, 2)
            centre_S = start + (end - start) * along_S
            loud_HS += np.exp(-0.5 * ((harmonic_H[:, None] - centre_S) / width) ** 2)
        wave_S = (loud_HS * tone_HS).sum(0) * edge_S
        spoken_WS[word] = wave_S / np.sqrt(np.square(wave_S).mean())
    return names, spoken_WS
