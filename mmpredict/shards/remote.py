"""Bytes from here or from afar. In: an address, an offset, a length. Out: exactly those bytes.

Local files are read with `pread`, others by range requests through fsspec. Nothing is opened until
the process that reads asks for it, and nothing is shared between processes: a reader can be
pickled, and one that has gone through a fork opens everything anew.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any
from urllib.parse import urljoin, urlsplit

from mmpredict.media import MediaError
from mmpredict.shards.addresses import SCHEMES, local_path, scheme_of, shown

_MAX_OPEN = 64  # files of one reader
_REQUEST_BYTES = 32 << 20  # of one range request; longer stretches take several
_PATIENCE = 10  # times `timeout_s` that one request may take when bytes trickle
_NOT_THERE = "no such file on its server"
_LONGEST_PAUSE_S = 8.0


@dataclass(frozen=True)
class Remote:
    """How files are reached.

    Args:
        schemes: what addresses may begin with; others than file, http and https need the fsspec
            package that knows them (s3fs, gcsfs, ...).
        timeout_s: a server may be silent for so long.
        tries: attempts of a request that fails for a passing reason (5xx, a broken connection).
        pause_s: before the second attempt; doubles with every further one.
    """

    schemes: tuple[str, ...] = SCHEMES
    timeout_s: float = 30.0
    tries: int = 4
    pause_s: float = 0.5

    def __post_init__(self) -> None:
        if self.tries < 1 or not self.timeout_s > 0:
            raise ValueError(
                f"data.remote.tries={self.tries} must be at least 1 and "
                f"data.remote.timeout_s={self.timeout_s:g} above 0"
            )


class RangeReader:
    """Reads stretches of files by their address; keeps the last ones open.

    Args:
        remote: how files are reached.
        max_open: files that are kept open at once.
    """

    def __init__(self, remote: Remote = Remote(), *, max_open: int = _MAX_OPEN) -> None:
        self.remote, self.max_open = remote, max_open
        self._inherited: list[Any] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._open: OrderedDict[str, _LocalFile | _RemoteFile] = OrderedDict()
        self._systems: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"remote": self.remote, "max_open": self.max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["remote"], max_open=state["max_open"])  # type: ignore[misc]

    def read(self, address: str, offset: int, length: int, *, size: int | None = None) -> bytes:
        """Exactly `length` bytes from `offset` on.

        Args:
            address: a path or URL.
            offset, length: bytes.
            size: of the whole file if it is known; spares a request for it.

        Raises:
            MediaError: the file cannot be reached or ends before.
        """
        return self._file(address, size).read(offset, length)

    def size(self, address: str) -> int:
        """Bytes of a file."""
        return self._file(address, None).size

    def source(self, address: str) -> RangeSource:
        """One file, for `scan_tar`."""
        return RangeSource(self, address, self.size(address))

    def whole(self, address: str, max_bytes: int) -> bytes:
        """A file's bytes; refuses one that is larger."""
        size = self.size(address)
        if size > max_bytes:
            reason = f"{size:,} bytes, over the limit of {max_bytes:,}"
            raise MediaError(shown(address), reason, kind="limits")
        return self.read(address, 0, size)

    def _file(self, address: str, size: int | None) -> _LocalFile | _RemoteFile:
        if self._pid != os.getpid():
            # To close what the parent has open would cut its connections: it is kept, untouched.
            self._inherited.append((self._open, self._systems))
            self._begin()
        with self._lock:
            file = self._open.pop(address, None) or self._opened(address, size)
            self._open[address] = file
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)  # closed when the last thread has done with it
        return file

    def _opened(self, address: str, size: int | None) -> _LocalFile | _RemoteFile:
        scheme = scheme_of(address, self.remote.schemes)
        if scheme == "file":
            return _LocalFile(address)
        if scheme not in self._systems:
            self._systems[scheme] = _file_system(scheme, self.remote)
        return _RemoteFile(address, self._systems[scheme], self.remote, size)


@dataclass(frozen=True)
class RangeSource:
    """One file of a reader, as `scan_tar` wants it."""

    reader: RangeReader
    address: str
    size: int

    @property
    def name(self) -> str:
        return shown(self.address)

    def read(self, offset: int, length: int) -> bytes:
        return self.reader.read(self.address, offset, length, size=self.size)


class _LocalFile:
    def __init__(self, address: str) -> None:
        self.name = address
        self._fd = -1
        path = local_path(address)
        try:
            # Looked at before it is opened: opening a pipe would wait for its other end.
            if not stat.S_ISREG(path.stat().st_mode):
                raise MediaError(address, "not a regular file")
            self._fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise MediaError(address, "no such file", kind="missing") from error
        except OSError as error:
            raise MediaError(address, error.strerror or str(error)) from error

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        missing = length
        while missing:  # one call gives 2 GiB at most
            try:
                part = os.pread(self._fd, missing, offset + length - missing)
            except OSError as error:
                raise MediaError(self.name, error.strerror or str(error)) from error
            if not part:
                raise _short(self.name, offset, length, length - missing)
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _RemoteFile:
    def __init__(self, address: str, system: Any, remote: Remote, size: int | None) -> None:
        self.address, self.system, self.remote = address, system, remote
        self._lock = Lock()  # the file of fsspec has one position
        self._file: Any = None
        self.size = self._asked(self._find_size) if size is None else size

    def _find_size(self) -> int:
        size = self.system.info(self.address)["size"]
        if size is None:
            raise MediaError(shown(self.address), "its server does not tell its size")
        return size

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise _short(shown(self.address), offset, length, max(0, self.size - offset))
        parts = []
        for start in range(offset, offset + length, _REQUEST_BYTES):
            count = min(_REQUEST_BYTES, offset + length - start)
            parts.append(self._asked(lambda start=start, count=count: self._part(start, count)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, offset: int, length: int) -> bytes:
        with self._lock:
            if self._file is None:
                # Only http asks for the size once more; other systems may not take it.
                known = {"size": self.size} if self.address.startswith("http") else {}
                self._file = self.system.open(self.address, "rb", cache_type="none", **known)
            self._file.seek(offset)
            part = self._file.read(length)
        if len(part) != length:
            raise _short(shown(self.address), offset, length, len(part))
        return part

    def _asked(self, question: Callable[[], Any]) -> Any:
        """Ask as often as it may help."""
        pause_s = self.remote.pause_s
        for attempt in range(1, self.remote.tries + 1):
            try:
                return question()
            except MediaError:
                raise
            except Exception as error:  # every file system has errors of its own
                # A question for the size hides what went wrong behind "not found".
                hides = isinstance(error, FileNotFoundError) and error.__cause__ is not None
                cause = error.__cause__ if hides else error
                if attempt == self.remote.tries or not _passing(cause):
                    reason = self._reason(cause, attempt)
                    kind = "missing" if reason == _NOT_THERE else "unreadable"
                    raise MediaError(shown(self.address), reason, kind=kind) from error
            time.sleep(min(pause_s, _LONGEST_PAUSE_S))
            pause_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def _reason(self, error: Exception, attempts: int) -> str:
        tries = f" ({attempts} attempts)" if attempts > 1 else ""
        if "support range requests" in str(error):
            return (
                "its server ignores range requests, so that no member can be reached alone; take "
                "another server or copy the file here"
            )
        if isinstance(error, TimeoutError):
            return f"its server was silent for {self.remote.timeout_s:g} s{tries}"
        status = getattr(error, "status", None)
        if isinstance(error, FileNotFoundError) or status == 404:
            return _NOT_THERE
        if status and not _broken(error):
            return f"its server answers {status} {getattr(error, 'message', '')}".rstrip() + tries
        words = " ".join(str(error).split())[:200] or "no message"
        return f"cannot be reached: {words} ({_kind(error)}){tries}"


def _file_system(scheme: str, remote: Remote) -> Any:
    """A file system of this process and of nobody else."""
    import fsspec

    if scheme not in ("http", "https"):
        try:
            return fsspec.filesystem(scheme, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise ValueError(f"data.remote.schemes: {scheme}: {error}") from error
    import aiohttp

    watch = aiohttp.TraceConfig()
    watch.on_request_redirect.append(_refuse_other_scheme)
    timeout = aiohttp.ClientTimeout(
        total=_PATIENCE * remote.timeout_s,
        sock_connect=remote.timeout_s,
        sock_read=remote.timeout_s,
    )
    return fsspec.filesystem(
        scheme,
        skip_instance_cache=True,
        client_kwargs={"timeout": timeout, "trace_configs": [watch]},
        headers={"Accept-Encoding": "identity"},  # offsets count in the file as it lies there
    )


async def _refuse_other_scheme(session: Any, context: Any, request: Any) -> None:
    """A redirect may lead to another host, but not out of http, nor from https back to http."""
    before = str(request.url)
    after = urljoin(before, request.response.headers.get("Location", ""))
    schemes = urlsplit(before).scheme, urlsplit(after).scheme
    if schemes[0] != schemes[1] and schemes != ("http", "https"):
        raise PermissionError(f"is redirected to {shown(after)}, which is not followed")


def _passing(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and status and not _broken(error):
        return status >= 500 or status in (408, 425, 429)
    if isinstance(error, FileNotFoundError | PermissionError | ValueError):
        return False
    return (
        _broken(error)
        or isinstance(error, OSError | TimeoutError)
        or _kind(error).startswith(
            ("Client", "Server")  # what the client of http raises for broken connections and bodies
        )
    )


def _broken(error: Exception) -> bool:
    """A body that broke off; its status is one that the client made up."""
    return _kind(error) in ("ClientPayloadError", "ContentLengthError", "TransferEncodingError")


def _short(name: str, offset: int, length: int, found: int) -> MediaError:
    return MediaError(
        name,
        f"ends before bytes {offset:,} to {offset + length:,} ({found:,} of {length:,} are there)",
    )


def _kind(error: Exception) -> str:
    return type(error).__name__
