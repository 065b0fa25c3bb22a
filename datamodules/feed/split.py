"""Which contents train and which are held out. In: hashes. Out: the split of each."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from datamodules.base import Split

FEW = 3  # held-out contents of each split, below which their number is kept exact


def split_by_hash(hashes: Sequence[str], share: float) -> list[Split]:
    """The split of each content by its hash in hex digits.

    Below `share` of the range it is "test", below twice that "val", else "train". Needs three
    different contents: the largest hash trains and the two smallest are held out in any case, so
    that no split is empty. Equal contents share a split, whatever their names.

    Few contents, fewer than FEW / share, would hold out too many by chance: there, no more than
    round(share * contents), but at least one, are validation, and as many test. The others below
    the threshold train for the time being.

    When contents are added, none that trained is ever held out but these others, of which there are
    none from FEW / share contents on (30 for a share of 0.1), unless all contents are below the
    threshold. A content that was held out only because there had to be one may come to train.
    """
    order = sorted(set(hashes))
    names = [_by_threshold(h, share) for h in order]
    names[-1] = "train"
    if "test" not in names:
        names[0] = "test"
    if "val" not in names:
        names[max(1, names.count("test") - 1)] = "val"
    if share * len(order) < FEW:
        most = max(1, round(share * len(order)))
        for kind in ("test", "val"):
            surplus = [i for i, name in enumerate(names) if name == kind][most:]
            for i in surplus:
                names[i] = "train"
    split = dict(zip(order, names, strict=True))
    return [split[h] for h in hashes]


def split_by_kind(kinds: Sequence[Hashable], hashes: Sequence[str], share: float) -> list[Split]:
    """`split_by_hash` of each kind of content by itself, so that each is held out.

    Of a kind with fewer than three different contents none is held out but by chance: its hashes
    alone decide. If that is all kinds, they are split as one.
    """
    of_kind: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        of_kind.setdefault(kind, []).append(i)
    many = {kind for kind, members in of_kind.items() if len({hashes[i] for i in members}) >= 3}
    if not many:
        return split_by_hash(hashes, share)
    names: list[Split] = [""] * len(hashes)
    for kind, members in of_kind.items():
        own = [hashes[i] for i in members]
        found = (
            split_by_hash(own, share) if kind in many else [_by_threshold(h, share) for h in own]
        )
        for i, name in zip(members, found, strict=True):
            names[i] = name
    return names


def _by_threshold(digest: str, share: float) -> Split:
    place = int(digest[:16], 16) / 16 ** len(digest[:16])
    return "test" if place < share else "val" if place < 2 * share else "train"
