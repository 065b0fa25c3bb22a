"""Where shards lie. In: what a user writes (folder, file, URL, brace range). Out: addresses.

An address is a path of this machine or a URL whose scheme is allowed. `pipe:`, chained URLs
(`zip::http://...`) and every scheme that is not listed are refused before anything is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

SCHEMES = ("file", "http", "https")
_MAX_ADDRESSES = 100_000  # of one brace range
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # one letter is a drive of another system
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def scheme_of(address: str, schemes: Sequence[str] = SCHEMES) -> str:
    """The scheme of an address, "file" for a plain path; refuses those that are not listed."""
    found = _SCHEME.match(address)
    scheme = found[1].lower() if found else "file"
    if "::" in address or (found and scheme != "file" and "://" not in address):
        remedy = "write ./ before the name of a file with a colon"
    elif scheme in schemes:
        return scheme
    else:
        remedy = f"add it to data.remote.schemes if you trust it (now {', '.join(schemes)})"
    raise ValueError(
        f"{shown(address)}: not an address that shards are read from; take a path, an http:// or "
        f"an https:// URL; {remedy}"
    )


def local_path(address: str) -> Path:
    """The path behind a plain path or a file: URL."""
    if _SCHEME.match(address):
        address = unquote(urlsplit(address).path)
    return Path(address).expanduser()


def shown(address: str) -> str:
    """An address for messages: without the password or the token that a URL may carry."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def beside(address: str, name: str) -> str:
    """The address of another file in the folder that `address` is (or, as a file, lies in)."""
    if "://" not in address:
        path = local_path(address)
        return str((path if path.is_dir() else path.parent) / name)
    parts = urlsplit(address)
    folder = parts.path if parts.path.endswith("/") else parts.path.rpartition("/")[0] + "/"
    return urlunsplit(parts._replace(path=folder + name))


def list_addresses(
    given: str | Sequence[str], suffix: str = ".tar", *, schemes: Sequence[str] = SCHEMES
) -> list[str]:
    """All files that `given` means, in its order; the files of a folder sorted by name.

    Args:
        given: one or several of: a folder (its files and those of its subfolders, hidden ones left
            out), a file, a URL; each may hold `{000..041}` and `{a,b}`.
        suffix: of the files of a folder.
        schemes: that are allowed.
    """
    found: list[str] = []
    for text in [given] if isinstance(given, str) else given:
        scheme = scheme_of(text, schemes)
        if scheme == "file" and local_path(text).exists():
            found += _of_folder(local_path(text), suffix)  # even if its name holds braces
            continue
        for address in _expanded(text):
            if scheme != "file":
                found.append(address)
                continue
            path = local_path(address)
            if not path.exists():
                raise ValueError(f"{address}: no such file or folder")
            found += _of_folder(path, suffix)
    if not found:
        raise ValueError(f"{given}: holds no {suffix} file")
    return found


def _of_folder(path: Path, suffix: str) -> list[str]:
    if not path.is_dir():
        return [str(path)]
    return sorted(
        str(file)
        for file in path.rglob(f"*{suffix}")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def _expanded(text: str) -> Iterator[str]:
    """`a{00..02}` as a00, a01, a02; every pair of braces multiplies."""
    count = 1
    for body in _BRACES.findall(text):
        count *= _choices(body)[0]
    if count > _MAX_ADDRESSES:
        raise ValueError(
            f"{shown(text)}: {count:,} addresses, over the limit of {_MAX_ADDRESSES:,}"
        )
    return _product(text)


def _product(text: str) -> Iterator[str]:
    found = _BRACES.search(text)
    if not found:
        yield text
        return
    for choice in _choices(found[1])[1]:
        for rest in _product(text[found.end() :]):
            yield text[: found.start()] + choice + rest


def _choices(body: str) -> tuple[int, Iterator[str]]:
    """How many strings a pair of braces stands for, and which."""
    bounds = _RANGE.fullmatch(body)
    if not bounds:
        names = body.split(",")
        return len(names), iter(names)
    first, last = int(bounds[1]), int(bounds[2])
    if last < first:
        raise ValueError(f"{{{body}}}: a range runs from the smaller number to the larger")
    return last - first + 1, (str(n).zfill(len(bounds[1])) for n in range(first, last + 1))
