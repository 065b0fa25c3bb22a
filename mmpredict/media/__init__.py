"""Files to Clips and back: video with its sound on one clock, images, text with its times.

Frames, samples and text of a file share one clock in seconds; see `read_clip` for where it starts.
This is the only room that knows PyAV.
"""

from mmpredict.media.folder import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_media
from mmpredict.media.info import MediaInfo, probe
from mmpredict.media.limits import Limits, MediaError
from mmpredict.media.local import MediaBytes
from mmpredict.media.manifest import ManifestRow, read_manifest
from mmpredict.media.reader import read_clip
from mmpredict.media.text import TEXT_SUFFIXES, read_text, sidecar_text, write_srt, write_text
from mmpredict.media.windows import read_windows
from mmpredict.media.writer import write_clip, write_wav

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "TEXT_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Limits",
    "ManifestRow",
    "MediaBytes",
    "MediaError",
    "MediaInfo",
    "list_media",
    "probe",
    "read_clip",
    "read_manifest",
    "read_text",
    "read_windows",
    "sidecar_text",
    "write_clip",
    "write_srt",
    "write_text",
    "write_wav",
]
