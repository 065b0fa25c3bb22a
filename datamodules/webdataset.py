"""WebDataset tars that others made, here or behind URLs. In: uncompressed tars. Out: documents.

Members whose names agree up to the first dot of the file name are one sample: a video, sound or
image, and text. Each tar is listed once, by its headers; nothing is unpacked, no pickle is opened
and no `pipe:` is run. A tar with a member that could harm is left out whole, by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from datamodules.base import Loading, Split
from datamodules.feed.documents import Skipped
from datamodules.files.headers import content_hash, look_at, skipped
from datamodules.files.stored import Look, StoredModule, Windows
from mmpredict.media import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Limits,
    MediaBytes,
    MediaError,
    MediaInfo,
    probe,
    read_text,
)
from mmpredict.schema import TextPiece
from mmpredict.shards import RangeReader, Remote, TarLimits, TarMember, list_addresses, scan_tar
from mmpredict.shards.addresses import local_path, scheme_of, shown
from mmpredict.tokens import MelChunks, Patches, TextTokens

TEXTS = (".srt", ".vtt", ".json", ".jsonl", ".txt", ".cls")
CAPTIONS = ("text", "caption", "captions", "transcript", "transcription", "sentence")
MAX_TEXT_BYTES = 64 * 1024**2


class WebDataset(StoredModule):
    """Tars in the layout of WebDataset.

    Of a sample, one media member is read (a video, else a sound, else an image), and one text: cues
    or words with times (.srt, .vtt, .json), else .txt, else a caption in .json (a key "text",
    "caption" or the like), else the label in .cls. Other members are left out, counted once.

    Without `val_urls` or `test_urls` samples are held out by a hash of their key and sizes.

    Args:
        urls: a tar, a folder of tars, an http(s) URL; `{000..041}` and `{a,b}` stand for several.
        audio, video, text: encoders; null leaves the stream out.
        val_urls, test_urls: tars of held-out samples.
        clip_seconds: length of a document; long media are cut into as many as they hold, for which
            every sound and video is read once at the start. null: each sample is one document.
        random_start, run_seconds: see `datamodules.AudioVisual`.
        held_out_share: expected share of the samples for validation, and as much for testing.
        tar_limits: what a tar may hold.
        remote: how URLs are reached: schemes, time-out, attempts.
        limits: what a member may cost; larger ones are skipped by name.
        loading: how documents become batches.
        seed: of the order of the training documents, and of `random_start`.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        urls: str | list[str],
        audio: MelChunks | None = MelChunks(),
        video: Patches | None = Patches(),
        text: TextTokens | None = TextTokens(),
        *,
        val_urls: str | list[str] | None = None,
        test_urls: str | list[str] | None = None,
        clip_seconds: float | None = 2.0,
        random_start: bool = False,
        run_seconds: float = 64.0,
        held_out_share: float = 0.1,
        tar_limits: TarLimits = TarLimits(),
        remote: Remote = Remote(),
        limits: Limits = Limits(),
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        windows = Windows(clip_seconds, random_start, run_seconds, held_out_share, limits)
        super().__init__(
            audio=audio, video=video, text=text, windows=windows, loading=loading, seed=seed
        )
        given: list[tuple[Split | None, str | list[str] | None]] = [
            ("val", val_urls),
            ("test", test_urls),
        ]
        decided = any(urls for _, urls in given)
        given.insert(0, ("train" if decided else None, urls))
        # Listed when the run starts, but an address that may not be opened is refused at once.
        for _, some in given:
            for url in [some] if isinstance(some, str) else some or ():
                scheme_of(url, remote.schemes)
        self._given, self._tar_limits, self._reader = given, tar_limits, RangeReader(remote)
        self._digests: dict[str, str] = {}

    def fingerprint(self) -> dict[str, str]:
        """Of each tar by its name: the names, sizes and places of its members."""
        return dict(self._digests)

    def look(self) -> Sequence[Look | Skipped]:
        roles = self._roles()
        names = short_names(list(roles))
        first = self._place()[0] == 0
        listed = look_at(roles, self._listed, show=first)  # type: ignore[arg-type]
        left_out: Counter[str] = Counter()
        samples: list[TarSample] = []
        found: list[Look | Skipped] = []
        splits: list[Split | None] = []
        for address, members in listed.items():
            if isinstance(members, Skipped):
                found.append(members)
                continue
            name = names[str(address)]
            self._digests[name] = self._digest(str(address), members)
            here = samples_of(self._reader, str(address), name, members, left_out)
            for split in roles[str(address)]:
                samples += here
                splits += [split] * len(here)
        if left_out and first:
            some = ", ".join(f"{count:,} {suffix}" for suffix, count in left_out.most_common(8))
            print(f"note: members that are no text or a second medium are left out: {some}")
        seen = look_at(range(len(samples)), lambda n: self._look_at(samples[n]), show=first)  # type: ignore[arg-type]
        for look, split in zip(seen.values(), splits, strict=True):
            found.append(look if isinstance(look, Skipped) else replace(look, split=split))
        return found

    def _roles(self) -> dict[str, list[Split | None]]:
        """The tars by address, each with the splits that it was given for."""
        roles: dict[str, list[Split | None]] = {}
        for split, urls in self._given:
            schemes = self._reader.remote.schemes
            for address in list_addresses(urls, schemes=schemes) if urls else ():
                if split not in roles.setdefault(address, []):
                    roles[address].append(split)
        for address, splits in roles.items():
            if "train" in splits and len(splits) > 1:
                raise ValueError(
                    f"{shown(address)} stands in data.urls and in data.{splits[1]}_urls; held-out "
                    "tars must not be trained on"
                )
        return roles

    def _listed(self, address: str) -> list[TarMember] | Skipped:
        try:
            return scan_tar(self._reader.source(address), self._tar_limits)
        except MediaError as error:
            return skipped(error)

    def _digest(self, address: str, members: Sequence[TarMember]) -> str:
        listing = json.dumps([[m.name, m.offset, m.size] for m in members])
        content = ""
        if scheme_of(address, self._reader.remote.schemes) == "file":
            content = content_hash(local_path(address))
        return hashlib.sha256((listing + content).encode()).hexdigest()

    def _look_at(self, sample: TarSample) -> Look | Skipped:
        """The header of a sample's medium; read only where its length decides its documents."""
        digest = hashlib.sha256(sample.signature.encode()).hexdigest()
        info = sample.guess()
        moving = (info.has_video or info.has_audio) and not info.still
        if moving and any(self.wanted.of(info)) and self.windows.clip_seconds is not None:
            try:
                info = probe(sample.media(), self.windows.limits)
            except MediaError as error:
                return skipped(error)
        return Look(info, sample, digest, bool(sample.text_members) or bool(info.text_codec))


@dataclass(frozen=True)
class TarSample:
    """One sample of a tar.

    Args:
        reader: reads the tar.
        address: of the tar.
        name: of the tar, for messages.
        key: what its members' names begin with.
        medium: the media member, or None.
        text_members: in the order in which they are preferred.
    """

    reader: RangeReader
    address: str
    name: str
    key: str
    medium: TarMember | None
    text_members: tuple[TarMember, ...]

    @property
    def signature(self) -> str:
        """What its split is decided by."""
        members = [self.medium, *self.text_members] if self.medium else self.text_members
        return "\n".join([self.key, *(f"{_suffix(m.name)} {m.size}" for m in members)])

    def guess(self) -> MediaInfo:
        """What the suffix says that it holds."""
        member = self.medium or self.text_members[0]
        suffix = _suffix(member.name)
        still = suffix in IMAGE_SUFFIXES
        return MediaInfo(
            Path(f"{self.name}!{member.name}"),
            0.0,
            suffix in VIDEO_SUFFIXES or still,
            suffix in VIDEO_SUFFIXES + AUDIO_SUFFIXES,
            still=still,
        )

    def media(self) -> MediaBytes:
        assert self.medium is not None
        return self._bytes(self.medium)

    def texts(self) -> tuple[TextPiece, ...]:
        best: tuple[TextPiece, ...] = ()
        for member in self.text_members:
            pieces = text_of(self._bytes(member))
            if any(piece.start_s is not None for piece in pieces):
                return pieces
            # Among untimed ones a text of its own comes before a caption among other facts.
            if pieces and (not best or _suffix(member.name) == ".txt"):
                best = pieces
        if not self.text_members and self.medium is not None:
            return read_text(self._bytes(self.medium))  # its subtitle track
        return best

    def _bytes(self, member: TarMember) -> MediaBytes:
        name = f"{self.name}!{member.name}"
        if member.size > MAX_TEXT_BYTES and _suffix(member.name) in TEXTS:
            reason = f"{member.size:,} bytes; too much for one text"
            raise MediaError(name, reason, kind="limits")
        try:
            data = self.reader.read(self.address, member.offset, member.size)
        except MediaError as error:
            reason = f"its tar {error.path}: {error.reason}"
            raise MediaError(name, reason, kind=error.kind) from error
        return MediaBytes(name, data)


def samples_of(
    reader: RangeReader,
    address: str,
    name: str,
    members: Sequence[TarMember],
    left_out: Counter[str],
) -> list[TarSample]:
    """The samples of one tar, in its order; what is not used is counted in `left_out`."""
    groups: dict[str, list[TarMember]] = {}
    for member in members:
        folder, slash, file = member.name.rpartition("/")
        key = folder + slash + file.partition(".")[0]
        groups.setdefault(key, []).append(member)
    found = []
    for key, group in groups.items():
        medium = None
        for suffixes in (VIDEO_SUFFIXES, AUDIO_SUFFIXES, IMAGE_SUFFIXES):
            fitting = [member for member in group if _suffix(member.name) in suffixes]
            if fitting and medium is None:
                medium = fitting[0]
        texts = [member for member in group if _suffix(member.name) in TEXTS]
        texts.sort(key=lambda member: TEXTS.index(_suffix(member.name)))
        used = {id(member) for member in (medium, *texts)}
        left_out.update(_suffix(m.name) or "(no suffix)" for m in group if id(m) not in used)
        if medium is not None or texts:
            found.append(TarSample(reader, address, name, key, medium, tuple(texts)))
    return found


def text_of(source: MediaBytes) -> tuple[TextPiece, ...]:
    """The text of a member: what `read_text` reads, a caption among other keys, or a label."""
    suffix = _suffix(source.name)
    if suffix == ".cls":
        return read_text(MediaBytes(f"{source.name}.txt", source.data))
    if suffix != ".json":
        return read_text(source)
    try:
        facts = json.loads(source.data)
    except (ValueError, RecursionError) as error:
        raise MediaError(source.name, f"not JSON: {error}") from error
    layout = isinstance(facts, list) or (
        isinstance(facts, dict)
        and any(isinstance(facts.get(key), list) for key in ("segments", "words"))
    )
    if layout:
        return read_text(source)
    found = [facts[key] for key in CAPTIONS if key in facts] if isinstance(facts, dict) else []
    words = found[0] if found and isinstance(found[0], list) else found[:1]
    return tuple(TextPiece(w.strip()) for w in words if isinstance(w, str) and w.strip())


def short_names(addresses: Sequence[str]) -> dict[str, str]:
    """A short, different name for every address: what differs of their paths."""
    paths = {a: urlsplit(a).path if "://" in a else os.path.abspath(a) for a in addresses}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()] or ["/"])
    names = {address: os.path.relpath(path, folder) for address, path in paths.items()}
    if len(set(names.values())) == len(names):
        return names
    return {address: shown(address) for address in addresses}


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
