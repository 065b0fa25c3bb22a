"""The embedded sounding world, drawn as it is needed. In: an index. Out: a scene as a document."""

from __future__ import annotations

from collections.abc import Iterable

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.feed.documents import ClipDocuments, Documents
from mmpredict.schema import Clip
from mmpredict.tokens import MelChunks, Patches, TextTokens
from mmpredict.world import FAMILIES, Condition, Scene, draw_scene

SCENE_SPLITS = {"train": "train", "val": "dev", "test": "test_iid"}
CORPUS_SCENES = 500


class World(ClipDataModule):
    """Scenes of rolling, falling, stacked, hidden, carried and lifted things that sound, captioned.

    Args:
        audio, video, text: encoders; null leaves the stream out.
        families: kinds of scenes, drawn evenly.
        condition: knobs of the scenes (length, number of objects, noise, ...).
        train_scenes: scenes of an epoch.
        repeat: every epoch shows the same scenes; false draws new ones for ever.
        val_scenes, test_scenes: held-out scenes.
        test_split: which held-out scenes `test` takes (test_iid, test_comp, test_size, ...).
        loading: how documents become batches.
        seed: of the scenes and their order.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        audio: MelChunks | None = MelChunks(),
        video: Patches | None = Patches(),
        text: TextTokens | None = TextTokens(),
        *,
        families: tuple[str, ...] = FAMILIES,
        condition: Condition = Condition(),
        train_scenes: int = 2000,
        repeat: bool = False,
        val_scenes: int = 64,
        test_scenes: int = 128,
        test_split: str = "test_iid",
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(audio=audio, video=video, text=text, loading=loading, seed=seed)
        self.families, self.condition, self.repeat = tuple(families), condition, repeat
        self.sizes = {"train": train_scenes, "val": val_scenes, "test": test_scenes}
        self.scene_splits = {**SCENE_SPLITS, "test": test_split}
        self.scene("test", 0, 0)  # an unknown family or split is said now

    def setup(self, stage: str | None = None) -> None:
        self.check_context(self.condition.seconds)
        super().setup(stage)

    def scene(self, split: Split, epoch: int, index: int) -> Scene:
        """The scene behind a document."""
        number = index if self.repeat else epoch * self.sizes[split] + index
        return draw_scene(
            number,
            split=self.scene_splits[split],
            seed=self.seed,
            families=self.families,
            condition=self.condition,
        )

    def clip(self, scene: Scene) -> Clip:
        """A scene as the run's streams see it."""
        video, audio = self.codecs.video, self.codecs.audio
        recording = scene.record(
            size=video.height_width if video else (32, 32),
            fps=video.fps if video else 8.0,
            sample_rate=audio.sample_rate if audio else 16000,
            channels=audio.channels if audio else 1,
            frames=video is not None,
            sound=audio is not None,
        )
        return recording.clip

    def documents(self, split: Split) -> Documents:
        return _Scenes(self, split)

    def corpus(self) -> Iterable[str]:
        for index in range(min(CORPUS_SCENES, self.sizes["train"])):
            recording = self.scene("train", 0, index).record(frames=False, sound=False)
            yield from (piece.text for piece in recording.clip.texts)


class _Scenes(ClipDocuments):
    def __init__(self, world: World, split: Split) -> None:
        super().__init__(world)
        self.world, self.split = world, split

    def __len__(self) -> int:
        return self.world.sizes[self.split]

    def name(self, index: int) -> str:
        return self.world.scene(self.split, 0, index).name

    def clip(self, epoch: int, index: int) -> Clip:
        return self.world.clip(self.world.scene(self.split, epoch, index))
