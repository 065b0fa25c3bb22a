"""Media as shards: uncompressed tar files that WebDataset reads, and an index of every sample.

`prepare` writes them once; from then on a training run reads any sample by its offset, checks its
sha256 and never opens untrusted files again.
"""

from mmpredict.shards.addresses import list_addresses
from mmpredict.shards.index import (
    FORMS,
    INDEX_NAME,
    Header,
    Index,
    IndexDamaged,
    Member,
    Sample,
    Shard,
    SkippedSource,
    Source,
    codec_signatures,
    parse_index,
    read_index,
    write_index,
)
from mmpredict.shards.members import clip_of_members, frame_times, members_of_clip, pieces_of
from mmpredict.shards.remote import RangeReader, Remote
from mmpredict.shards.store import Store
from mmpredict.shards.tar_read import TarLimits, TarMember, scan_tar
from mmpredict.shards.verify import Damage, verify

__all__ = [
    "Damage",
    "RangeReader",
    "Remote",
    "Store",
    "TarLimits",
    "TarMember",
    "list_addresses",
    "scan_tar",
    "verify",
    "FORMS",
    "INDEX_NAME",
    "Header",
    "Index",
    "IndexDamaged",
    "Member",
    "Sample",
    "Shard",
    "SkippedSource",
    "Source",
    "clip_of_members",
    "codec_signatures",
    "frame_times",
    "members_of_clip",
    "parse_index",
    "pieces_of",
    "read_index",
    "write_index",
]
