"""Several datamodules as one: shares, order, common encoders, and the parts' own streams."""

from __future__ import annotations

from collections import Counter

import pytest
from pytorch_lightning import LightningDataModule

from datamodules import AudioVisual, ClipDataModule, Mixture, Skipped, Text, World
from datamodules.feed.plan import EpochPlan
from mmpredict.schema import Stop
from mmpredict.sequence import unpack
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens
from tests.datamodules.small import (
    AUDIO,
    CODECS,
    STREAMS,
    TEXT,
    VIDEO,
    WORDS,
    Numbered,
    all_documents,
    codecs,
    loading,
    prose,
    same,
    write_sounds,
    write_video,
)


class Counted(ClipDataModule):
    """A part whose documents can be told: number `first` + index, in epoch e plus 1000 e."""

    def __init__(self, first: int, size: int) -> None:
        super().__init__(audio=None, video=None, text=WORDS, loading=None, seed=0)
        self.first, self.size = first, size

    def documents(self, split: str) -> Numbered:
        documents = Numbered(self.size if split == "train" else 3, length=lambda n: 4)
        read = documents.document
        documents.document = lambda epoch, index: read(epoch, index + self.first)
        return documents

    def corpus(self) -> list[str]:
        return []


def mixture(*parts: ClipDataModule, weights: list[float] | None = None, **options) -> Mixture:
    data = Mixture(list(parts), weights or [1.0] * len(parts), **{"loading": loading()} | options)
    data.setup()
    return data


def drawn(data: Mixture, epoch: int = 0) -> list[int]:
    """The number of the document at each place of an epoch."""
    rows = all_documents(data.documents("train"), epoch)
    return [int(row.contents[TEXT][0]) for row in rows]


def test_weights_are_kept():
    """Exactly in every epoch; within four standard deviations in every half of one."""
    parts = Counted(0, 50), Counted(10_000_000, 50), Counted(20_000_000, 50)
    data = mixture(*parts, weights=[6.0, 3.0, 1.0], documents_per_epoch=2000)
    for epoch in range(2):
        numbers = [n // 10_000_000 for n in drawn(data, epoch)]
        assert Counter(numbers) == {0: 1200, 1: 600, 2: 200}
        for half in (numbers[:1000], numbers[1000:]):
            seen = Counter(half)
            for part, share in enumerate((0.6, 0.3, 0.1)):
                assert abs(seen[part] - 1000 * share) < 4 * (1000 * share * (1 - share)) ** 0.5


def test_no_document_is_missed_or_doubled_at_any_border():
    """Sizes that divide nothing: after k documents of a part, each came floor or ceil of k / size
    times."""
    data = mixture(
        Counted(0, 7), Counted(10_000_000, 23), weights=[1.0, 2.7], documents_per_epoch=31
    )
    seen: list[list[int]] = [[], []]
    for epoch in range(40):
        for number in drawn(data, epoch):
            seen[number // 10_000_000].append(number % 1000)
        for part, size in enumerate((7, 23)):
            counts = Counter(seen[part])
            most, least = max(counts.values()), min(counts.get(n, 0) for n in range(size))
            assert most - least <= 1


def test_a_part_that_would_never_be_drawn_is_refused():
    data = mixture(Counted(0, 5), Counted(100, 5), weights=[1.0, 1e-6], documents_per_epoch=50)
    with pytest.raises(ValueError, match="part 1 .*less than one of 50 documents"):
        data.documents("train")


class Filmed(Counted):
    """A part whose neighbours are read together."""

    def documents(self, split: str) -> Numbered:
        documents = Numbered(self.size, run=5)
        documents.read_at_once = []
        read = documents.read

        def noted(epoch: int, indices: list[int]) -> list:
            documents.read_at_once.append((epoch, tuple(indices)))
            return read(epoch, indices)

        documents.read = noted
        return documents


def test_runs_of_a_part_are_read_at_one_go_within_a_mixture():
    data = mixture(Counted(10_000_000, 40), Filmed(0, 40), documents_per_epoch=100)
    drawn_documents = data.documents("train")
    alone = [drawn_documents.document(1, n) for n in range(100)]
    tasks = list(EpochPlan(drawn_documents, 0, 1, 16).tasks(range(100)))
    assert sorted(place for task in tasks for place in task.places) == list(range(100))
    film = drawn_documents.parts[1]
    film.read_at_once.clear()
    for task in tasks:
        if task.is_run:
            rows = drawn_documents.read(1, task.numbers)
            assert all(same(row, alone[n]) for row, n in zip(rows, task.numbers, strict=True))
    assert len(film.read_at_once) == sum(task.is_run for task in tasks) >= 8
    for _, indices in film.read_at_once:
        assert len(indices) > 1 and len({n // 5 for n in indices}) == 1


def test_weights_in_tokens():
    """Documents of 4 and of 40 tokens, two thirds of the tokens from the long ones."""
    short, long = Counted(0, 30), Counted(500, 30)
    long.documents = lambda split: Numbered(30, length=lambda n: 40)
    data = mixture(short, long, weights=[1.0, 2.0], unit="tokens", documents_per_epoch=600)
    rows = all_documents(data.documents("train"))
    lengths = [row.modality.shape[1] for row in rows]
    assert sum(n for n in lengths if n == 40) == pytest.approx(2 / 3 * sum(lengths), rel=0.02)


def test_a_stream_gets_its_least_share(capsys):
    world = World(**codecs("audio", "video"), train_scenes=8)
    data = mixture(
        world,
        Text(text=WORDS),
        weights=[200.0, 1.0],
        min_share={"text": 0.3},
        documents_per_epoch=120,
        loading=loading(context_length=512),
    )
    rows = all_documents(data.documents("train"))
    text = sum(int((row.modality == TEXT).sum()) for row in rows)
    assert text / sum(row.modality.shape[1] for row in rows) == pytest.approx(0.3, abs=0.04)
    assert "shares of the documents" in capsys.readouterr().out
    plain = mixture(
        world,
        Text(text=WORDS),
        weights=[1.0, 1.0],
        min_share={"text": 0.01},
        loading=loading(context_length=512),
    )
    assert plain.shares([part.documents("train") for part in plain.parts]) == [0.5, 0.5]


def test_a_least_share_that_cannot_be_had_is_said():
    data = mixture(
        World(**codecs("audio", "video", "text"), train_scenes=8),
        min_share={"text": 0.9},
        loading=loading(context_length=512),
    )
    with pytest.raises(ValueError, match="min_share=.*cannot be reached"):
        data.documents("train")
    with pytest.raises(ValueError, match="min_share"):
        mixture(Counted(0, 5), min_share={"smell": 0.1})


def test_the_draw_is_a_pure_function_of_seed_and_epoch():
    def made(seed: int = 0) -> Mixture:
        parts = Counted(0, 30), Counted(10_000_000, 30)
        return mixture(*parts, weights=[2.0, 1.0], documents_per_epoch=60, seed=seed)

    first = made()
    numbers = [drawn(first, epoch) for epoch in range(3)]
    assert [drawn(made(), epoch) for epoch in (2, 0, 1)] == [numbers[2], numbers[0], numbers[1]]
    assert numbers[0] != drawn(made(seed=1), 0)
    parts = [n // 10_000_000 for n in numbers[0]]
    assert parts != [n // 10_000_000 for n in numbers[1]]
    assert parts != [n // 10_000_000 for n in drawn(made(seed=1), 0)]


def test_a_part_alone_is_gone_through_once_per_epoch_of_its_own():
    """Documents come shuffled, none twice before all have come, and then in another order."""
    data = mixture(Counted(0, 40), documents_per_epoch=20)
    epochs = [drawn(data, epoch) for epoch in range(4)]
    first, second = epochs[0] + epochs[1], epochs[2] + epochs[3]
    assert sorted(first) == list(range(40))
    assert sorted(second) == [1000 + n for n in range(40)], "the part's second epoch"
    assert max(epochs[0]) > 25, "not only the part's first documents"
    assert [n - 1000 for n in second] != first


def test_batches_do_not_depend_on_the_number_of_workers():
    runs = []
    for workers in (0, 2):
        how = loading(workers=workers, timeout_s=60.0)
        data = Mixture(
            [World(**codecs("audio", "video"), train_scenes=3), Text(text=WORDS)],
            [1.0, 1.0],
            documents_per_epoch=12,
            loading=how,
        )
        data.setup()
        loader = data.train_dataloader()
        runs.append([batch for _ in range(2) for batch in loader])
    assert len(runs[0]) == len(runs[1])
    assert all(map(same, *runs))


def test_validation_joins_the_parts():
    data = mixture(Counted(0, 9), Counted(500, 9))
    for split in ("val", "test"):
        rows = all_documents(data.documents(split))
        assert [int(row.contents[TEXT][0]) for row in rows] == [0, 1, 2, 500, 501, 502]
    with pytest.raises(IndexError):
        data.documents("val").document(0, 6)


def test_parts_keep_their_own_streams(tmp_path):
    """What a part leaves out stays out, though the mixture has it."""
    for n in range(3):
        write_video(tmp_path / f"{n}.mp4", 0.5, n)
        (tmp_path / f"{n}.txt").write_text("left out")
    data = mixture(
        World(**codecs("audio", "text"), train_scenes=3),
        AudioVisual(str(tmp_path), **codecs("video"), clip_seconds=0.5),
        Text(text=WORDS),
        documents_per_epoch=40,
    )
    assert [spec.name for spec in data.layout.streams] == list(STREAMS)
    kinds = {frozenset(row.contents) for row in all_documents(data.documents("train"))}
    assert kinds == {frozenset({AUDIO, TEXT}), frozenset({VIDEO}), frozenset({TEXT})}
    statistics = data.statistics()
    assert set(statistics.mean) == {AUDIO, VIDEO}
    assert all(statistics.std[m].min() > 0 for m in (AUDIO, VIDEO))


def test_one_vocabulary_for_all_parts(tmp_path):
    codec = TextTokens(kind="bpe", vocab_size=300)
    (tmp_path / "texts").mkdir()
    for n in range(6):
        (tmp_path / "texts" / f"{n}.txt").write_text(prose(400, n))
    sounds = write_sounds(tmp_path / "media", 3, 0.5)
    sounds[0].with_suffix(".srt").write_text("nothing that is read: not a run with text")
    parts = (
        World(None, CODECS["video"], codec, train_scenes=3),
        Text(str(tmp_path / "texts"), codec),
        AudioVisual(str(tmp_path / "media"), **codecs("audio"), clip_seconds=0.5),
        World(**codecs("video"), train_scenes=3),
    )
    data = Mixture(list(parts), 4 * [1.0], loading=loading(), documents_per_epoch=16)
    before = data.layout
    data.setup()
    fitted = data.codecs.text
    assert fitted.is_fitted and fitted.kind == "bpe" and data.layout == before
    assert fitted == codec.fit([*parts[0].corpus(), *parts[1].corpus()])
    assert [part.codecs.text for part in parts] == [fitted, fitted, None, None]
    assert {m for row in all_documents(data.documents("train")) for m in row.contents} == {0, 1, 2}
    data.setup("test")
    assert data.codecs.text is fitted


def test_parts_that_disagree_are_named_with_what_differs(tmp_path):
    world = World(MelChunks(), Patches(size=32, patch=8), TextTokens())
    other = World(None, Patches(size=48, patch=8), None)
    with pytest.raises(ValueError, match="disagree on video: World has size=32; World has size=48"):
        Mixture([world, other], [1.0, 1.0])
    fitted = TextTokens(kind="bpe", vocab_size=300).fit(["a"])
    (tmp_path / "tokenizer.json").write_text(fitted.vocabulary)
    own = TextTokens(kind="bpe", path=str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError) as refusal:
        Mixture([world, Text(text=own)], [1.0, 1.0])
    assert "text" in str(refusal.value) and "Text has kind='bpe'" in str(refusal.value)
    assert len(str(refusal.value)) < 400, "without the vocabulary itself"


def test_the_mixture_says_how_to_load(tmp_path):
    """A part's own loading is not used: neither its rows' length nor its limits."""
    write_sounds(tmp_path, 29, 0.3)
    for n in range(11):
        (tmp_path / f"bad{n}.wav").write_text("no")
    how = loading(context_length=114, max_skipped_share=0.3)

    def parts() -> list[ClipDataModule]:
        return [
            Text(text=WORDS),
            AudioVisual(str(tmp_path), **codecs("audio"), clip_seconds=0.5),
            World(**codecs("audio", "video")),
        ]

    data = mixture(*parts(), loading=how, documents_per_epoch=30)
    assert data.skip_log.num_sources == 40 and len(data.skip_log.reasons) == 11
    data.setup("test")
    assert data.skip_log.num_sources == 40, "counted once"
    assert max(r.modality.shape[1] for r in all_documents(data.documents("val"))[:11]) <= 114
    with pytest.raises(Stop, match="11 of 40"):
        mixture(*parts(), loading=loading(context_length=114))
    with pytest.raises(ValueError, match="114 positions"):
        mixture(*parts(), loading=loading(context_length=113, min_skipped=12))


def test_a_mixture_of_mixtures():
    inner = Mixture([Text(text=WORDS)], [1.0], documents_per_epoch=8)
    outer = mixture(
        inner, World(**codecs("video"), train_scenes=2), loading=loading(context_length=70)
    )
    batch = next(iter(outer.train_dataloader()))
    lengths = [d.modality.shape[1] for row in unpack(batch) for d in row]
    assert max(lengths) <= 70
    assert not outer.skip_log.truncated


def test_skipped_documents_of_parts_are_counted(tmp_path):
    write_sounds(tmp_path, 5, 0.5)
    (tmp_path / "bad.wav").write_text("no")
    (tmp_path / "s00.srt").write_text("1\n00:00:01 -> oops\n")
    part = AudioVisual(str(tmp_path), **codecs("audio", "text"), clip_seconds=0.5)
    data = mixture(Text(text=WORDS), part, documents_per_epoch=40)
    for split in ("train_dataloader", "val_dataloader", "test_dataloader"):
        list(getattr(data, split)())
    assert set(data.skip_log.reasons) == {str(tmp_path / "bad.wav"), str(tmp_path / "s00.srt")}
    kinds = {
        type(row) for s in ("train", "val", "test") for row in all_documents(data.documents(s))
    }
    assert Skipped in kinds


@pytest.mark.parametrize(
    ("weights", "count"),
    [([1.0], 2), ([1.0, 0.0], 2), ([1.0, -1.0], 2), ([1.0, float("nan")], 2), ([], 0)],
)
def test_weights_that_cannot_be(weights, count):
    with pytest.raises(ValueError, match="one positive weight per part"):
        Mixture([Counted(0, 3) for _ in range(count)], weights)


def test_foreign_datamodules_are_refused():
    with pytest.raises(ValueError, match=r"\['LightningDataModule'\]"):
        Mixture([LightningDataModule()], [1.0])


def test_codecs_without_a_stream_are_refused():
    with pytest.raises(ValueError, match="all streams are null"):
        Codecs()
