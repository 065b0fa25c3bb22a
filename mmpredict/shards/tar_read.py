"""What an uncompressed tar holds. In: a reader of byte ranges. Out: its members, by name.

Nothing is unpacked and nothing is written: a member is a name, an offset and a size. A tar that
could harm a tool that does unpack it (`..`, links, devices, two members of one name, pickles) is
refused whole, with the member's name, because nobody makes such a tar of media by accident.

Understood: ustar, GNU and PAX headers with long names. A member that is a folder is passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from mmpredict.media import MediaError
from mmpredict.media.limits import Kind

BLOCK = 512
_AHEAD = 1 << 16, 1 << 20  # bytes read at once: least, and most while members lie close together
_MAX_EXTENDED_BYTES = 1 << 20  # of one long-name or PAX header
_MAX_NAME = 255
_MAX_PADDING = 1 << 20  # zeros behind the end of the tar; tools pad to 10 KiB

_NUL = b"\0" * BLOCK
_REGULAR = b"0\x007"  # kinds of headers whose data are the file; 7 is "contiguous"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"M": "the rest of a file in another volume",
    b"S": "a sparse file",
}
# What loaders of other projects execute or unpickle when they meet it.
_CODE = frozenset(
    "pkl pickle p pyd py pyc pyw pth pt ckpt joblib dill cpickle marshal so dylib dll exe sh bat "
    "cmd ps1 jar".split()
)
_PACKED = frozenset("gz bz2 xz zst".split())
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK\x03\x04": "zip",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OCTAL = re.compile(rb"[0-7]+")


class ByteSource(Protocol):
    """A file of which stretches can be read."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raises MediaError where that cannot be."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarLimits:
    """Refuse a tar that is larger.

    Args:
        max_members: files, folders and long names together.
        max_bytes: of the whole tar.
    """

    max_members: int = 100_000
    max_bytes: int = 1 << 40


def scan_tar(source: ByteSource, limits: TarLimits = TarLimits()) -> list[TarMember]:
    """The regular files of a tar in their order; see the head of this file for what is refused.

    Raises:
        MediaError: names the tar, the member and the remedy.
    """
    return _Scan(source, limits).run()


class _Scan:
    def __init__(self, source: ByteSource, limits: TarLimits) -> None:
        self.source, self.limits = source, limits
        self.members: list[TarMember] = []
        self.names: set[str] = set()
        self._buffer, self._start, self._ahead = b"", 0, _AHEAD[0]

    def run(self) -> list[TarMember]:
        self._check_whole()
        offset, count = 0, 0
        long_name: str | None = None  # from the extended headers before a member
        pax: dict[str, str] = {}
        while offset + BLOCK <= self.source.size:
            header = self._bytes(offset, BLOCK)
            if header == _NUL:
                self._check_end(offset)
                return self.members
            count += 1
            if count > self.limits.max_members:
                raise self._error(
                    f"more than {self.limits.max_members:,} members; make smaller tars, or raise "
                    "max_members if you trust it",
                    kind="limits",
                )
            self._check_sum(header, offset)
            kind, size = header[156:157], self._size(header, offset)
            data = offset + BLOCK
            if kind in b"xgLK" and kind:
                body = self._extended(kind, data, size)
                if kind == b"L":
                    long_name = _text(body.rstrip(b"\0"))
                elif kind == b"x":
                    pax = self._records(body, offset)
                elif kind == b"g" and self._records(body, offset).keys() & {"path", "size"}:
                    raise self._error(f"a name or size for all members at byte {offset}")
            else:
                name = self._name(header, long_name, pax)
                if "size" in pax:
                    size = self._pax_size(name, pax["size"])
                self._take(name, kind, data, size)
                long_name, pax = None, {}
            offset = data + (size + BLOCK - 1) // BLOCK * BLOCK
        raise self._error(
            f"ends at byte {self.source.size:,} without the mark of an end; it was cut off: fetch "
            "or make it again"
        )

    def _take(self, name: str, kind: bytes, data: int, size: int) -> None:
        """Keep a member, or say why not."""
        plain = self._plain(name)
        if kind == b"5" or (kind == b"\0" and name.endswith("/")):
            return
        if kind not in _REGULAR or not kind:
            what = _KINDS.get(kind, f"of the unknown kind {kind!r}")
            raise self._error(f"member {plain!r} is {what}; only plain files are read", plain)
        if data + size > self.source.size:
            raise self._error(
                f"member {plain!r} of {size:,} bytes at {data:,} passes the end of the tar "
                f"({self.source.size:,} bytes); it was cut off: fetch or make it again",
                plain,
            )
        if plain in self.names:
            raise self._error(f"two members are called {plain!r}", plain)
        endings = plain.rpartition("/")[2].lower().split(".")[1:]
        if endings and endings[-1] in _PACKED:
            endings.pop()
        if endings and endings[-1] in _CODE:
            raise self._error(
                f"member {plain!r} is code or a pickle, which some loaders run; "
                f"take it out (tar --delete -f TAR {plain!r})",
                plain,
            )
        self.names.add(plain)
        self.members.append(TarMember(plain, data, size))

    def _plain(self, name: str) -> str:
        """The name without `./`; refuses one that could leave a folder."""
        shown = name if len(name) <= 80 else name[:60] + "..."
        if len(name) > _MAX_NAME:
            raise self._error(f"member {shown!r} has a name of {len(name)} characters; at most 255")
        if _CONTROL.search(name):
            raise self._error(f"member {shown!r} has a control character in its name")
        if name.startswith(("/", "\\")) or name[1:2] == ":":
            raise self._error(f"member {shown!r} has an absolute name")
        parts = name.replace("\\", "/").split("/")
        if ".." in parts:
            raise self._error(f"member {shown!r} leads out of its folder")
        plain = "/".join(part for part in parts if part not in ("", "."))
        if not plain and name.strip("./"):
            raise self._error(f"member {shown!r} has no name")
        return plain

    # Headers

    def _name(self, header: bytes, long_name: str | None, pax: dict[str, str]) -> str:
        if any(key.startswith("GNU.sparse") for key in pax):
            raise self._error(f"member {pax.get('path', '')!r} is a sparse file")
        if "path" in pax:
            return pax["path"]
        if long_name is not None:
            return long_name
        name = self._field(header[:100])
        if header[257:263] == b"ustar\0" and header[345:346] != b"\0":
            return _text(self._field(header[345:500]) + b"/" + name)
        return _text(name)

    def _field(self, field: bytes) -> bytes:
        name, _, rest = field.partition(b"\0")
        if rest.strip(b"\0"):
            raise self._error(f"member {_text(field)!r} has a zero byte in its name")
        return name

    def _size(self, header: bytes, offset: int) -> int:
        field = header[124:136]
        if field[0] == 0x80:  # GNU: the number itself, for 8 GiB and more
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        if not _OCTAL.fullmatch(digits or b"0"):
            raise self._error(f"a size that is no number at byte {offset}")
        return int(digits or b"0", 8)

    def _pax_size(self, name: str, size: str) -> int:
        if not (size.isascii() and size.isdigit() and len(size) < 20):
            raise self._error(f"member {name[:80]!r} has a size that is no number")
        return int(size)

    def _check_sum(self, header: bytes, offset: int) -> None:
        digits = header[148:156].strip(b" \0")
        found = sum(header) - sum(header[148:156]) + 8 * 32
        if not _OCTAL.fullmatch(digits) or int(digits, 8) != found:
            if offset == 0:
                raise self._error("not a tar")
            after = f" (after {self.members[-1].name!r})" if self.members else ""
            raise self._error(f"damaged: no valid header at byte {offset:,}{after}")

    def _extended(self, kind: bytes, data: int, size: int) -> bytes:
        if size > _MAX_EXTENDED_BYTES:
            raise self._error(f"a long-name header of {size:,} bytes at {data - BLOCK:,}")
        if data + size > self.source.size:
            raise self._error(f"cut off at byte {self.source.size}; fetch or make it again")
        return b"" if kind == b"K" else self._bytes(data, size)

    def _records(self, body: bytes, offset: int) -> dict[str, str]:
        """A PAX header: records of "LENGTH KEY=VALUE\\n"."""
        records: dict[str, str] = {}
        at = 0
        while at < len(body):
            digits, space, _ = body[at : at + 8].partition(b" ")
            length = int(digits) if digits.isdigit() and space else 0
            record = body[at + len(digits) + 1 : at + length]
            key, equals, value = record[:-1].partition(b"=")
            if at + length > len(body) or not equals or record[-1:] != b"\n":
                raise self._error(f"a damaged PAX header at byte {offset:,}")
            records[_text(key)] = _text(value)
            at += length
        return records

    # Bytes

    def _check_whole(self) -> None:
        if self.source.size > self.limits.max_bytes:
            raise self._error(
                f"{self.source.size:,} bytes, over the limit of {self.limits.max_bytes:,}; "
                "make smaller tars, or raise max_bytes if you trust it",
                kind="limits",
            )
        head = self._bytes(0, min(8, self.source.size))
        for magic, how in _COMPRESSED.items():
            if head.startswith(magic):
                raise self._error(
                    f"compressed ({how}); members are reached only in a plain tar: uncompress it"
                )
        if self.source.size < BLOCK:
            raise self._error(f"not a tar ({self.source.size} bytes)")

    def _check_end(self, offset: int) -> None:
        """A tar ends with zeros; what stands behind them no tool would find."""
        rest = self.source.size - offset
        tail = self._bytes(offset, min(rest, _MAX_PADDING))
        if tail.strip(b"\0") or rest > _MAX_PADDING:
            raise self._error(
                f"something stands behind its end at byte {offset:,}; were two tars joined? "
                "make one of their members"
            )

    def _bytes(self, offset: int, length: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + length > len(self._buffer):
            near = 0 <= at - len(self._buffer) < self._ahead
            # Far members are reached one by one; between near ones reading on costs less.
            self._ahead = min(2 * self._ahead, _AHEAD[1]) if near else _AHEAD[0]
            wanted = min(max(length, self._ahead), self.source.size - offset)
            self._buffer, self._start, at = self.source.read(offset, wanted), offset, 0
        return self._buffer[at : at + length]

    def _error(self, reason: str, member: str = "", *, kind: Kind = "unreadable") -> MediaError:
        name = f"{self.source.name}!{member}" if member else self.source.name
        return MediaError(name, reason, kind=kind)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
