"""From graded items to what may be said. In: rows, one per item and variant of its evidence, of a
model and of the baselines beside it. Out: the plain dict of results.json.

A row (plain types, a line of per_item.jsonl) has: id, family, variant, cluster, group, chance,
score (0 to 1; None where the item could not be asked), tied, error ("" or why it could not be
asked), numbers (what was said, by rule), and, of numeric items, constants (what each number would
get that is offered).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmpredict.probes import stats
from mmpredict.probes.grading import best_constant

Row = Mapping[str, Any]
ALPHA = 0.05
CONSTANT = "best constant"


def summarise(rows: Sequence[Row], baselines: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Scores per variant and family, beside baselines on the very same items.

    Args:
        rows: of the model.
        baselines: rows of others by name ("untrained", "no evidence", ...); items that they lack
            are left out of the comparison, and counted.

    Returns:
        variant -> {"families": {family: entry}, "macro": [estimate, low, high], "iqm": float}; see
        `_entry` for an entry. p values are adjusted over the families of a variant (Holm).
    """
    found: dict[str, Any] = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        others = {
            name: {row["id"]: row for row in theirs if row["variant"] == variant}
            for name, theirs in baselines.items()
        }
        families = {
            family: _entry([row for row in mine if row["family"] == family], others)
            for family in dict.fromkeys(row["family"] for row in mine)
        }
        _adjust(families)
        for entry in families.values():
            entry["claim"] = claim(entry)
        found[variant] = {"families": families, **_macro(mine, families)}
    return found


def _entry(rows: Sequence[Row], others: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """Of one family: n, clusters, errors, chance, score, interval, normalised, group score and its
    chance, tie rate, p against chance, smallest difference that this many items show, baselines."""
    asked = [row for row in rows if row["score"] is not None]
    entry: dict[str, Any] = {"n": len(asked), "errors": len(rows) - len(asked)}
    entry["chance"] = chance = sum(row["chance"] for row in rows) / len(rows)
    if not asked:
        return entry | {"score": None, "baselines": {}}
    scores, clusters = [row["score"] for row in asked], [row["cluster"] for row in asked]
    above = [row["score"] - row["chance"] for row in asked]
    interval = stats.cluster_bootstrap(scores, clusters)
    entry |= {
        "clusters": len(set(clusters)),
        "score": interval.estimate,
        "interval": [max(0.0, interval.low), min(1.0, interval.high)],
        "normalised": stats.chance_normalised(interval.estimate, chance),
        "tie_rate": sum(row["tied"] for row in asked) / len(asked),
        "p": stats.sign_flip(above, clusters),
        "detectable": stats.detectable(stats.clustered_error(above, clusters)),
        "rules": _rules(asked),
        **_groups(asked),
    }
    beside = {name: _beside(asked, theirs) for name, theirs in others.items()}
    entry["baselines"] = _constant(asked) | beside
    return entry


def _constant(rows: Sequence[Row]) -> dict[str, Any]:
    """Of numbers, the one that is best over these very items, always said. A guess among them is
    worse: to beat that alone is to know which numbers are common."""
    if not all("constants" in row for row in rows):
        return {}
    scores = best_constant([row["constants"] for row in rows])
    said = {r["id"]: {"score": score} for r, score in zip(rows, scores, strict=True)}
    return {CONSTANT: _beside(rows, said)}


def _rules(rows: Sequence[Row]) -> dict[str, float]:
    """Mean score by every rule that was taken, the registered one among them."""
    by_rule: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for rule, score in row.get("scores", {}).items():
            by_rule[rule].append(score)
    return {rule: sum(scores) / len(scores) for rule, scores in sorted(by_rule.items())}


def _groups(rows: Sequence[Row]) -> dict[str, float]:
    """Share of the groups with more than one item in which all are right, and what a guess gets."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["group"]:
            groups[row["group"]].append(row)
    whole = [members for members in groups.values() if len(members) > 1]
    if not whole:
        return {}
    right = sum(all(row["score"] == 1 for row in members) for members in whole)
    guess = 0.0
    for members in whole:
        chance = 1.0
        for row in members:
            chance *= row["chance"]
        guess += chance
    return {"group_score": right / len(whole), "group_chance": guess / len(whole)}


def _beside(rows: Sequence[Row], theirs: Mapping[str, Row]) -> dict[str, Any]:
    """A baseline's score and how much more the model has, on the items that both were asked."""
    both = [row for row in rows if _score_of(theirs, row) is not None]
    if not both:
        return {"n": 0}
    mine = [row["score"] for row in both]
    other = [_score_of(theirs, row) for row in both]
    clusters = [row["cluster"] for row in both]
    difference = stats.paired_difference(mine, other, clusters)
    return {
        "n": len(both),
        "score": sum(other) / len(other),
        "more": difference.interval.estimate,
        "interval": [difference.interval.low, difference.interval.high],
        "p": difference.p,
    }


def _score_of(rows: Mapping[str, Row], row: Row) -> float | None:
    other = rows.get(row["id"])
    return None if other is None else other["score"]


def _adjust(families: Mapping[str, dict[str, Any]]) -> None:
    """Holm's adjustment, over all families of a variant: against chance, and per baseline."""
    asked = {name: entry for name, entry in families.items() if entry["score"] is not None}
    for name, p in stats.holm({name: entry["p"] for name, entry in asked.items()}).items():
        asked[name]["p_adjusted"] = p
    for baseline in dict.fromkeys(b for entry in asked.values() for b in entry["baselines"]):
        beside = {
            name: entry["baselines"][baseline]
            for name, entry in asked.items()
            if entry["baselines"].get(baseline, {}).get("n")
        }
        for name, p in stats.holm({name: e["p"] for name, e in beside.items()}).items():
            beside[name]["p_adjusted"] = p


def _macro(rows: Sequence[Row], families: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    parts = []
    for name, entry in families.items():
        mine = [row for row in rows if row["family"] == name and row["score"] is not None]
        if mine:
            scores, clusters = [r["score"] for r in mine], [r["cluster"] for r in mine]
            parts.append(stats.FamilyScores(scores, clusters, entry["chance"]))
    if not parts:
        return {"macro": None, "iqm": None}
    normalised = [e["normalised"] for e in families.values() if e["score"] is not None]
    return {
        "macro": stats.macro_mean(parts).to_plain(),
        "iqm": stats.interquartile_mean(normalised),
    }


def claim(entry: Mapping[str, Any]) -> str:
    """What the intervals allow to be said of a family, in words. Nothing else may be said."""
    if entry["score"] is None:
        return "could not be asked"
    low, high = entry["interval"]
    if high < entry["chance"] and entry["p_adjusted"] < ALPHA:
        return "below chance"
    if entry["clusters"] < 2:
        return "one scene says nothing"
    if not (low > entry["chance"] and entry["p_adjusted"] < ALPHA):
        if entry["detectable"] == 0:
            return "at chance in every scene"
        return f"not told from chance (differences from {entry['detectable']:.2f} on would show)"
    beaten, level = [], []
    for name, beside in entry["baselines"].items():
        if beside["n"]:
            more = beside["interval"][0] > 0 and beside["p_adjusted"] < ALPHA
            (beaten if more else level).append(name)
    if CONSTANT in level:
        return "not above saying one number always"
    if level:
        return f"above chance, not above {', '.join(level)}"
    return f"above chance and {', '.join(beaten)}" if beaten else "above chance"
