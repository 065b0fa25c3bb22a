"""Files to Clips and back: video with its sound on one clock, images, text with its times.

Frames, samples and text of a file share one clock in seconds; see `read_clip` for where it starts.
This is the only room that knows PyAV.
"""

from mmpredict.media.folder import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    VIDEO_SUFFIXES,
    Listing,
    list_folder,
    texts_beside,
)
from mmpredict.media.info import MediaInfo, probe
from mmpredict.media.limits import BehindTheEndError, Limits, MediaError
from mmpredict.media.local import MediaBytes
from mmpredict.media.manifest import ManifestRow, read_manifest
from mmpredict.media.reader import read_clip
from mmpredict.media.text import read_text, write_srt, write_text
from mmpredict.media.windows import read_windows
from mmpredict.media.writer import write_clip, write_wav

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "TEXT_SUFFIXES",
    "VIDEO_SUFFIXES",
    "BehindTheEndError",
    "Limits",
    "Listing",
    "ManifestRow",
    "MediaBytes",
    "MediaError",
    "MediaInfo",
    "list_folder",
    "probe",
    "read_clip",
    "read_manifest",
    "read_text",
    "read_windows",
    "texts_beside",
    "write_clip",
    "write_srt",
    "write_text",
    "write_wav",
]
