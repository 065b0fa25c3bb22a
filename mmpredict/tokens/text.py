"""Text to ids and back. In: a Clip's text pieces. Out: one block (1 position) per token, with
times.

Every piece is closed by the END id, which no text can produce: bytes map to 0..255, the trained
vocabulary holds no special tokens, and special tokens of a file are read as plain text. The tokens
of a word end when the word ends; words share their piece's span in proportion to their letters.

Shapes: K tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmpredict.schema import Clip, Modality, StreamSpec, TextPiece, Tokens

_WANTED = "give a tokenizer.json, or a folder with tokenizer.json and config.json"


@dataclass(frozen=True)
class TextTokens:
    """Bytes, or a byte-level BPE vocabulary.

    Args:
        kind: `bytes` (256 ids, no file needed) or `bpe` (trained on the data's own text at the
            start, or read from `path`).
        vocab_size: ids of a BPE vocabulary, END included; bytes always have 257.
        path: a tokenizer.json to use as it is, or the folder of a language model that has one; the
            folder's config.json then says `vocab_size` and `end`.
        end: id that closes a piece, of a special token of `path`; null for a new id after all
            others.
        vocabulary: the trained tokenizer as JSON text; filled by `fit` and kept in the checkpoint.
    """

    kind: Literal["bytes", "bpe"] = "bytes"
    vocab_size: int = 512
    path: str | None = None
    end: int | None = None
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        if self.kind == "bytes" and self.path is not None:
            raise ValueError(f"text.path={self.path} is for kind: bpe, and text.kind is bytes")
        if self.kind == "bpe" and self.path is None and self.vocab_size < 258:
            raise ValueError(
                f"text.vocab_size={self.vocab_size} has no room for 256 bytes, END and one merge; "
                "take 258 or more, or kind: bytes"
            )
        if self.end is not None and self.path is None:
            raise ValueError(f"text.end={self.end} is for a vocabulary from a file; give text.path")
        if self.path is not None and self.vocabulary is None:
            self._read(Path(self.path).expanduser())

    @property
    def end_id(self) -> int:
        """Closes a piece."""
        return self.spec.vocab_size - 1 if self.end is None else self.end

    @property
    def spec(self) -> StreamSpec:
        if self.kind == "bytes":
            size = 257
        elif self.path is not None and self.end is None:
            size = self._bpe_and_size()[1] + 1
        else:
            size = self.vocab_size
        return StreamSpec(modality=Modality.TEXT, name="text", vocab_size=size)

    def _read(self, path: Path) -> None:
        """Take over the file, and from a language model's folder the size of its table and END."""
        rows, end, file = 0, self.end, path
        if path.is_dir():
            rows, end = _rows_and_end(path, self.end)
            file = path / "tokenizer.json"
            if self.vocab_size not in (TextTokens.vocab_size, rows):
                raise ValueError(
                    f"text.vocab_size={self.vocab_size}, {path / 'config.json'} says {rows}; leave "
                    "it out"
                )
        if not file.is_file():
            raise FileNotFoundError(f"text.path={self.path}: {file} is not a file; {_WANTED}")
        object.__setattr__(self, "vocabulary", file.read_text(encoding="utf-8"))
        if end is None:
            return
        tokenizer, ids = self._bpe_and_size()
        rows = rows or ids
        if rows < ids or not 0 <= end < rows:
            raise ValueError(
                f"text.path={self.path}: the tokenizer has {ids} ids, the table of the model "
                f"{rows} rows, and end is {end}; both must fit into the table"
            )
        word = tokenizer.id_to_token(end)
        if word is not None and end in tokenizer.encode(word, add_special_tokens=False).ids:
            raise ValueError(
                f"text.end={end} is {word!r}, which a text may contain; give the id of a special "
                f"token of {file}"
            )
        object.__setattr__(self, "end", end)
        object.__setattr__(self, "vocab_size", rows)

    @property
    def is_fitted(self) -> bool:
        return self.kind == "bytes" or self.vocabulary is not None

    def fit(self, corpus: Iterable[str]) -> TextTokens:
        """Train the BPE vocabulary on `corpus`; the same corpus gives the same vocabulary."""
        if self.is_fitted:
            return self
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(_without_surrogates, corpus), trainer)
        return replace(self, vocabulary=tokenizer.to_str())

    def _bpe_and_size(self) -> tuple[Any, int]:
        """The tokenizer, and one more than its highest id (a file may leave ids out)."""
        if self.vocabulary is None:
            raise ValueError(
                "the BPE vocabulary is not trained yet; call fit(corpus) or give text.path"
            )
        if not hasattr(self, "_tokenizer"):
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_str(self.vocabulary)
            tokenizer.encode_special_tokens = True  # "<eos>" typed by a user stays five characters
            tokenizer.no_truncation()  # a file may ask for both
            tokenizer.no_padding()
            size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
            object.__setattr__(self, "_tokenizer", (tokenizer, size))
        return self._tokenizer

    @property
    def tokenizer(self) -> Any:
        """The trained vocabulary of a BPE, as `tokenizers` has it."""
        return self._bpe_and_size()[0]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_tokenizer"}

    def ids_of(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text` without END, and for each the index of the character at which it ends."""
        if self.kind == "bytes":
            per_char = [char.encode("utf-8", "surrogatepass") for char in text]
            ids = [byte for char in per_char for byte in char]
            return ids, [i + 1 for i, char in enumerate(per_char) for _ in char]
        tokenizer, _ = self._bpe_and_size()
        encoding = tokenizer.encode(_without_surrogates(text), add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    def text_of(self, ids: Sequence[int]) -> str:
        """Undo `ids_of`; END must have been cut away. Bytes that are no UTF-8 become U+FFFD."""
        if self.kind == "bytes":
            raw = bytes(ids)
            try:
                return raw.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                return raw.decode("utf-8", "replace")
        return self._bpe_and_size()[0].decode(list(ids), skip_special_tokens=False)

    def encode(self, clip: Clip) -> Tokens | None:
        """Ids of all pieces, each closed by END; None without text."""
        ids: list[int] = []
        end_s: list[float] = []
        for piece in clip.texts:
            piece_ids, char_ends = self.ids_of(piece.text)
            ids += [*piece_ids, self.end_id]
            end_s += token_times(piece, char_ends)
        if not ids:
            return None
        times = np.array(end_s)
        timed = ~np.isnan(times)
        # Pieces may overlap in time (two people talk); their order stays that of the clip.
        times[timed] = np.maximum.accumulate(times[timed])
        return Tokens(
            modality=Modality.TEXT,
            contents=torch.tensor(ids, dtype=torch.int64),
            end_s=torch.from_numpy(times),
        )

    def decode(self, tokens: Tokens) -> Clip:
        """Pieces, cut at END; timed from the end of the first word to the end of the last."""
        pieces: list[TextPiece] = []
        ids: list[int] = []
        times: list[float] = []
        for token, time in zip(tokens.contents.tolist(), tokens.end_s.tolist(), strict=True):
            times.append(time)
            if token == self.end_id:
                pieces.append(_piece(self.text_of(ids), times))
                ids, times = [], []
            else:
                ids.append(token)
        if ids:
            pieces.append(_piece(self.text_of(ids), times))
        return Clip(texts=tuple(pieces))


def token_times(piece: TextPiece, char_ends: Sequence[int]) -> list[float]:
    """End time of each token and of END: that of the word in which the token ends."""
    if piece.start_s is None:
        return [float("nan")] * (len(char_ends) + 1)
    length = max(1, len(piece.text))
    word_end = [length] * (length + 1)
    for i in range(length - 1, 0, -1):
        boundary = i < len(piece.text) and piece.text[i].isspace()
        word_end[i] = i if boundary else word_end[i + 1]
    span = piece.end_s - piece.start_s
    times = [piece.start_s + span * word_end[max(1, end)] / length for end in char_ends]
    return [*(min(time, piece.end_s) for time in times), piece.end_s]  # rounding may pass the end


def _rows_and_end(folder: Path, asked: int | None) -> tuple[int, int]:
    """Of a language model: rows of its table of words, and the id that ends a text if none is
    asked for."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"text.path={folder} is a folder without config.json; {_WANTED}")
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        rows, end = int(plain["vocab_size"]), plain.get("eos_token_id")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"text.path={folder}: config.json is damaged: {error!r}") from error
    end = end[0] if isinstance(end, list) and end else end
    end = end if asked is None else asked
    if not isinstance(end, int):
        raise ValueError(
            f"text.path={folder}: config.json says eos_token_id={end}; give text.end, the id of "
            "the special token that ends a text"
        )
    return rows, end


def _without_surrogates(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {text[:40]!r} holds a lone surrogate; repair it, or use kind: bytes"
        ) from error
    return text


def _piece(text: str, times: list[float]) -> TextPiece:
    known = [time for time in times if time == time]
    if not known:
        return TextPiece(text)
    return TextPiece(text, known[0], known[-1])
