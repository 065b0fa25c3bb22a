"""Small folders in the published layouts: the names and the order of columns are the authors', plus
one unknown column and one odd row (Unicode, a comma in a caption, CRLF)."""

from __future__ import annotations

import base64
import csv
import io
import json
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch

from mmpredict.media import write_clip, write_wav
from mmpredict.schema import Clip

SIZE = 32


@cache
def mp4_bytes(frames: int = 4, fps: int = 8) -> bytes:
    """A grey square that brightens."""
    shades = torch.linspace(20, 220, frames).to(torch.uint8)
    clip = Clip(
        frames_TCHW=shades[:, None, None, None].expand(frames, 3, SIZE, SIZE).contiguous(),
        times_s=torch.arange(frames).double() / fps,
    )
    with TemporaryDirectory() as folder:
        write_clip(f"{folder}/clip.mp4", clip)
        return Path(f"{folder}/clip.mp4").read_bytes()


@cache
def image_bytes(codec: str = "png") -> bytes:
    """One frame as png, or mjpeg for a jpg."""
    context = av.CodecContext.create(codec, "w")
    context.width = context.height = SIZE
    context.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 90, np.uint8), format="rgb24")
    packets = [*context.encode(frame.reformat(format=context.pix_fmt)), *context.encode(None)]
    return b"".join(map(bytes, packets))


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_video(path: Path) -> Path:
    return put(path, mp4_bytes())


def put_image(path: Path) -> Path:
    return put(path, image_bytes("png" if path.suffix == ".png" else "mjpeg"))


def table(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\r\n") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def jsonl(rows: list[dict[str, Any]], end: str = "\r\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def intphys(root: Path) -> Path:
    """A scene in each block and one of the test set; block O3 in the form of version 1.0."""
    marks = {"O1": (1, 0, 1, 0), "O2": (0, 0, 1, 1), "O3": (1, 1, 0, 0)}
    for block, possible in marks.items():
        scene = "0001" if block != "O1" else "0001_O1_dev_occluded_static_nobj1"
        for movie, mark in enumerate(possible, 1):
            home = root / "dev" / block / scene / str(movie)
            for k in range(6):
                put_image(home / "scene" / f"scene_{k + 1:03d}.png")
            header = {"header": {"block_name": "caf\u00e9, x", "is_possible": bool(mark)}}
            status = {"possible": bool(mark)} if block == "O3" else header
            put(home / "status.json", json.dumps({**status, "extra": 1}))
    for movie in range(1, 5):
        for k in range(6):
            put_image(
                root / "test" / "O2" / "0001" / str(movie) / "scene" / f"scene_{k + 1:03d}.png"
            )
    return root


def intphys2(root: Path, spelling: str = "filename", style: str = "{}") -> Path:
    """A scene of four in Debug and in Main, three held-out videos."""
    for split, environment, law in (
        ("Debug", "BasicLevel_0", "permanence"),
        ("Main", "Egypt_0", "immutability_texture"),
    ):
        rows = []
        for kind in ("1_Possible", "1_Impossible", "2_Possible", "2_Impossible"):
            stem = f"{split.lower()}_{kind}"
            put_video(root / split / "Videos" / f"{stem}.mp4")
            rows.append(
                {
                    "SceneIndex": "3",
                    spelling: style.format(stem),
                    "type": kind,
                    "condition": law,
                    "env": environment,
                    "game_name": "RotatingCup" if split == "Debug" else "Restaurant",
                    "Camera": "\u00e9, odd",
                    "Difficulty": "Easy",
                    "unknown column": "x",
                }
            )
        put(root / split / "metadata.csv", table(rows))
    for k in range(3):
        put_video(root / "HeldOut" / "Videos" / f"h{k}.mp4")
    return root


def inflevel(root: Path) -> Path:
    """A set of continuity with a direction and of gravity without, in the lab; one of solidity in
    the simulator; and a set that lacks two trials."""
    lab, sim = root / "inflevel_lab", root / "inflevel_sim"
    for trial in ("vv", "ii", "iv", "vi"):
        put_video(lab / "continuity" / f"center__continuity__darkbluecup__duck__{trial}__LR.mp4")
    for trial in ("ui", "cv", "uv", "ci"):
        put_video(lab / "gravity" / f"center__gravity__bigbluecup__blackcrayon__{trial}.mp4")
        put_video(sim / "solidity" / f"left__solidity__Apple_1__Bowl_2__{trial}.mp4")
    for trial in ("ui", "cv"):
        put_video(lab / "gravity" / f"left__gravity__bigbluecup__duck__{trial}.mp4")
    return root


def grasp(root: Path) -> Path:
    """Two concepts with two pairs; two colours; an ordering whose file repeats earlier labels."""
    for concept in ("Gravity", "ObjectPermanence2"):
        for kind in ("P", "IP"):
            for k in (2, 10):
                put_video(root / "level2" / f"{kind}_{concept}" / f"{k}.mp4")
    for colour in ("Red", "Black"):
        put_video(root / "level1" / f"Color{colour}" / "0.mp4")
    put_video(root / "level1" / "TwoObjectOrdering" / "0.mp4")
    put(root / "level1" / "TwoObjectOrdering" / "0.txt", "cube,ball,caf\u00e9 cup,ball\r\n")
    return root


def mvp(root: Path) -> Path:
    """A pair in each of two tasks, one as JSONL with a list, one with the list as a string."""
    for task, as_text in (("intuitive_physics", False), ("temporal_reasoning", True)):
        rows = []
        for k, answer in enumerate(("yes, it falls", "no \u2013 it stays")):
            candidates = ["yes, it falls", "no \u2013 it stays"]
            put_video(root / "videos" / "grasp" / f"{task}_{k}.mp4")
            rows.append(
                {
                    "video_id": f"{task}_7_{k}",
                    "video_path": f"grasp/{task}_{k}.mp4",
                    "question": "Does it fall, or not?",
                    "candidates": str(candidates) if as_text else candidates,
                    "answer": answer,
                    "source": "grasp",
                    "unknown column": 1,
                }
            )
        put(root / task / "full.jsonl", jsonl(rows))
    return root


def whatsup(root: Path) -> Path:
    """A whole set of four in A and in B, two rows of COCO and one of VG."""
    sets = {
        "A": ("controlled_images", ("left_of", "right_of", "on", "under")),
        "B": ("controlled_clevr", ("left_of", "right_of", "in-front_of", "behind")),
    }
    files = {"A": "controlled_images_dataset.json", "B": "controlled_clevr_dataset.json"}
    for name, (folder, places) in sets.items():
        words = [place.replace("_", " ").replace("-", " ") for place in places]
        rows = []
        for k, place in enumerate(places):
            file = f"mug_{place}_caf\u00e9-table.jpeg"
            put_image(root / folder / file)
            captions = [f"A mug {w} a table, white" for w in words[k:] + words[:k]]
            rows.append(
                {"image_path": f"data/{folder}/{file}", "caption_options": captions, "x": 0}
            )
        put(root / files[name], json.dumps(rows))
    for image in (139, 285):
        put_image(root / "val2017" / f"{image:012d}.jpg")
    coco = [
        [139, "A photo of a dog to the left of a cat", "A photo of a dog to the right of a cat"],
        [285, "A photo of a bench above a cup", "A photo of a bench below a cup"],
    ]
    put(root / "coco_qa_two_obj.json", json.dumps(coco))
    put_image(root / "vg_images" / "2.jpg")
    put(root / "vg_qa_one_obj.json", json.dumps([[2, "A sign on the top", "A sign on the bottom"]]))
    return root


def vsr(root: Path) -> Path:
    """Four rows, one of a picture that is not there; a relation that no category has."""
    rows = []
    for k, (relation, label) in enumerate(
        (("left of", 1), ("touching", 0), ("among", 1), ("left of", 0))
    ):
        rows.append(
            {
                "image": f"{k:012d}.jpg",
                "image_link": "http://images.cocodataset.org/train2017/x.jpg",
                "caption": f"The caf\u00e9, old, is {relation} the cow.",
                "label": label,
                "relation": relation,
                "annotator_id": 1,
                "vote_true_validator_id": "[2, 9]",
                "vote_false_validator_id": "[]",
                "reference_frame": None,
                "unknown column": "x",
            }
        )
        if k != 3:
            put_image(root / "images" / rows[-1]["image"])
    put(root / "splits" / "zeroshot" / "test.jsonl", jsonl(rows))
    categories = "Topological: touching, among\nProjective: left of\nUnallocated: beyond, among \n"
    put(root / "analysis_scripts" / "rel_meta_category_dict.txt", categories)
    return root


def babi(root: Path) -> Path:
    """Two stories of task 17 with two and one questions, one path of task 19."""
    home = root / "tasks_1-20_v1-2" / "en"
    text = (
        "1 The pink rectangle is to the left of the triangle.\r\n"
        "2 Caf\u00e9, the square, is above it.\r\n"
        "3 Is the square above the triangle?\tyes\t1 2\r\n"
        "4 Is the triangle above the square?\tno\t1 2\r\n"
        "1 The red sphere is below the box.\r\n"
        "2 Is the box above the red sphere?\tyes\t1\r\n"
    )
    put(home / "qa17_positional-reasoning_test.txt", text)
    path = (
        "1 The office is north of the hall.\n2 How do you go from the hall to the den?\ts,e\t1 1\n"
    )
    put(home / "qa19_path-finding_test.txt", path)
    return root


def stepgame(root: Path) -> Path:
    """The older form, one hop and ten."""
    row = {"story": ["X is left of Y, he said.", "caf\u00e9"], "question": "Where is X to Y?"}
    for hops, label in ((1, "left"), (10, "upper-left")):
        whole = {"0": {**row, "label": label, "extra": 0}, "1": {**row, "label": "overlap"}}
        put(root / "TrainVersion" / f"qa{hops}_test.json", json.dumps(whole))
    return root


def stepgame_rows(root: Path) -> Path:
    """The later form."""
    rows = [
        {"story": ["X is left of Y."], "question": "Where is X to Y?", "label": "left", "k_hop": k}
        for k in (1, 1, 10)
    ]
    put(root / "test.jsonl", jsonl(rows))
    return root


def spartqa(root: Path) -> Path:
    """One question of each type, and one with two answers and one with none."""
    relations = ["left", "right", "above", "below", "near to", "far from", "touching", "DK"]
    things = ["the medium, blue square", "the caf\u00e9", "both", "none"]
    questions = [
        ("FB", "Which block has a circle?", ["B"], ["A", "B", "C"]),
        ("FB", "Which blocks have a square?", ["A", "C"], ["A", "B", "C"]),
        ("FB", "Which block has a star?", [], ["A", "B", "C"]),
        ("FR", "Where is the square?", [2], relations),
        ("FR", "Where is the circle?", [0, 3], relations),
        ("CO", "Which is above?", [1], things),
        ("YN", "Is it above?", ["Yes"], ["Yes", "No", "DK"]),
        ("YN", "Is it below?", ["DK"], []),
    ]
    rows = [
        {"q_id": k, "q_type": t, "question": q, "answer": a, "candidate_answers": c}
        for k, (t, q, a, c) in enumerate(questions)
    ]
    data = {"name": "x", "data": [{"story": ["We have three blocks, A, B, C."], "questions": rows}]}
    put(root / "test.json", json.dumps(data))
    return root


def ewok(root: Path) -> Path:
    """Two domains, three items."""
    for domain, count in (("spatial-relations", 2), ("physical-dynamics", 1)):
        rows = [
            {
                "Domain": domain,
                "ConceptA": "left",
                "ConceptB": "right",
                "Context1": f"The caf\u00e9, {k}, is left of Ali.",
                "Context2": f"The caf\u00e9, {k}, is right of Ali.",
                "Target1": "Ali is right of it.",
                "Target2": "Ali is left of it.",
                "unknown column": k,
            }
            for k in range(count)
        ]
        put(root / f"{domain}.jsonl", jsonl(rows))
    return root


def clevrer(root: Path) -> Path:
    """A scene with one question of each type; no option of the predictive one is correct."""

    def options(*marks: str) -> list[dict[str, Any]]:
        return [
            {"choice_id": k, "choice": f"The caf\u00e9, {k}", "program": [], "answer": mark}
            for k, mark in enumerate(marks)
        ]

    questions = [
        {"question_type": "descriptive", "question": "What color?", "answer": "gray"},
        {"question_type": "explanatory", "choices": options("wrong", "correct", "wrong")},
        {"question_type": "predictive", "choices": options("wrong", "wrong")},
        {"question_type": "counterfactual", "choices": options("correct", "correct")},
    ]
    for k, row in enumerate(questions):
        row |= {"question_id": k, "question": "What, then?", "program": [], "extra": 1}
    scene = {"scene_index": 10000, "video_filename": "video_10000.mp4", "questions": questions}
    put(root / "validation.json", json.dumps([scene]))
    put_video(root / "video_validation" / "video_10000-11000" / "video_10000.mp4")
    thing = {"object_id": 0, "location": [1.0, 2.0, 0.2], "velocity": [0.5, 0.0, 0.0]}
    annotation = {
        "scene_index": 10000,
        "video_filename": "video_10000.mp4",
        "object_property": [{"object_id": 0, "color": "gray"}],
        "motion_trajectory": [
            {"frame_id": 0, "objects": [{**thing, "inside_camera_view": True}]},
            {"frame_id": 64, "objects": [{**thing, "inside_camera_view": False}]},
            {"frame_id": 128, "objects": [{**thing, "location": [2.0, 2.0, 0.2]}]},
        ],
        "collision": [],
    }
    put(root / "annotation_validation" / "annotation_10000.json", json.dumps(annotation))
    return root


def physion(root: Path) -> Path:
    """Two scenarios: three test clips each with labels and one label without a clip, ten readout
    clips each, and a clip without a label."""
    rows = []
    for scenario in ("collide", "drop"):
        for k in range(3):
            name = f"pilot_{scenario}_{k:04d}"
            put_video(root / scenario / "mp4s-redyellow" / f"{name}_img.mp4")
            cells = ["https://x/img", "https://x/map", "https://x/hdf5"]
            rows.append([name, scenario, *cells, ("0.9", "0.2", "0.7")[k], str(k != 1)])
    put_video(root / "drop" / "mp4s-redyellow" / "pilot_drop_9999_img.mp4")
    rows.append(["pilot_drop_0003", "drop", "u", "u", "u", "0.5", "True"])
    head = ["stim_ID", "scenario", "stim_url", "map_url", "hdf5_url", "correct", "label"]
    table_ = [dict(zip(head, row, strict=True)) | {"odd, col": "\u00e9"} for row in rows]
    put(root / "stimulus_names_and_labels.csv", table(table_))
    train = []
    for scenario in ("collide", "drop"):
        for k in range(10):
            name = f"readout_{scenario}_{k:04d}"
            put_video(root / scenario / "mp4s-redyellow" / f"{name}-redyellow_img.mp4")
            train.append({"": name, "ground truth outcome": str(bool(k % 2))})
    put(root / "readout_labels.csv", table(train))
    put(root / "results" / "other.csv", "some,other\ntable,with,odd rows\n")
    return root


def cater(root: Path, train: int = 1) -> Path:
    """Two videos for actions, one multi-label; three places; so many copies of the one to train
    on, by turns with the given class and with another."""
    for name in ("CLEVR_new_000001.avi", "CLEVR_new_000002.avi", "caf\u00e9_3.avi"):
        put_video(root / "videos" / name)
    lists = root / "lists"
    for task, first, val in (
        ("actions_present", "0", ("0,3,13", "3")),
        ("localize", "5", ("35", "0")),
        ("actions_order_uniq", "300", ("1,299", "7")),
    ):
        lines = [f"caf\u00e9_3.avi {first}\r\n"]
        for k in range(1, train):
            put_video(root / "videos" / f"more_{k}.avi")
            lines.append(f"more_{k}.avi {first if k % 2 else 1}\r\n")
        put(lists / task / "train.txt", "".join(lines))
        lines = [f"output/CLEVR_new_00000{k + 1}.avi {c}\r\n" for k, c in enumerate(val)]
        put(lists / task / "val.txt", "".join(lines))
    return root


def vlmevalkit_tsv(root: Path) -> Path:
    """Spatial: a picture with its mirror image and turned options, a row that refers to another's
    picture, a list of two pictures, yes and no. Rows of a million more are turned copies."""
    picture = base64.b64encode(image_bytes()).decode()
    head = ("index", "image", "question", "A", "B", "answer", "category", "qid", "odd, column")
    rows = [
        ("0", picture, "Where is the caf\u00e9, then?", "left", "right", "A", "place", "AA", ""),
        ("1", "0", "Where is the caf\u00e9, then?", "right", "left", "B", "place", "AA-1", ""),
        ("2", picture, "Where is it?", "left", "right", "B", "place", "AA-flip", ""),
        ("3", picture, "Where is it?", "right", "left", "A", "place", "AA-flip-1", ""),
        ("4", str([picture, picture]), "Which?", "first", "second", "A", "order", "BB", ""),
    ]
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    put(root / "3DSRBench.tsv", table(cells, "\t"))
    put_image(root / "kitchen.jpg")
    copies = [
        {"index": 15, "image_path": "kitchen.jpg", "question": "Is it so?", "answer": "Yes"},
        {"index": 1_000_015, "image_path": "kitchen.jpg", "question": "Is it?", "answer": "No"},
    ]
    put(root / "YesNo.tsv", table(copies, "\t", end="\n"))
    return root


def vsibench(root: Path) -> Path:
    """Two directions of different degrees, an order, three counts and one count of 0."""
    rows = [
        ("object_rel_direction_easy", "Where?", ["A. left", "B. right"], "A"),
        ("object_rel_direction_hard", "Where?", ["A. front-left", "B. back", "C. right"], "C"),
        ("obj_appearance_order", "Which first?", ["A. caf\u00e9, door", "B. door"], "B"),
        ("object_counting", "How many chairs?", None, "4"),
        ("object_counting", "How many tables?", None, "5"),
        ("object_counting", "How many, lamps?", None, "10"),
        ("object_counting", "How many dogs?", None, "0"),
    ]
    head = ("question_type", "question", "options", "ground_truth")
    cells = [
        {"id": k, "dataset": "scannet", "scene_name": "scene0001", "odd, column": 1}
        | dict(zip(head, row, strict=True))
        for k, row in enumerate(rows)
    ]
    put(root / "test.jsonl", jsonl(cells))
    put_video(root / "scannet" / "scene0001.mp4")
    return root


def spatialsoundqa(root: Path) -> Path:
    """Two distances of single sources, two yes-or-no of two sources, and one open list."""
    rows = [
        ("eval/a", "r/0.npy", None, None, 0, "DISTANCE", "How far?", "2m"),
        ("eval/b", "r/1.npy", None, None, 1, "DISTANCE", "How far, then?", "caf\u00e9"),
        ("eval/a", "r/0.npy", "eval/b", "r/1.npy", 2, "MIXUP_BINARY", "Is it left?", "Yes"),
        ("eval/b", "r/1.npy", "eval/a", "r/0.npy", 3, "MIXUP_BINARY", "Is it left?", "No"),
        ("eval/a", "r/0.npy", None, None, 4, "CLASSIFICATION", "What is it?", "car; vehicle"),
    ]
    head = ("audio_id", "reverb_id", "audio_id2", "reverb_id2")
    head += ("question_id", "question_type", "question", "answer")
    data = [dict(zip(head, row, strict=True)) | {"odd, column": 1} for row in rows]
    put(root / "eval.json", json.dumps({"data": data}))
    for name, hertz in (("a", 440.0), ("b", 880.0)):
        tone = 0.1 * torch.sin(2 * torch.pi * hertz * torch.arange(16_000) / 16_000)
        (root / "audioset" / "eval").mkdir(parents=True, exist_ok=True)
        write_wav(root / "audioset" / "eval" / f"{name}.wav", tone[None], 16_000)
    for k in range(2):
        response = np.zeros((2, 64), np.float32)
        response[k, 0], response[1 - k, 20] = 1.0, 0.25  # nearer to one ear
        path = root / "mp3d_reverb" / "binaural" / "r" / f"{k}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, response)
    return root


BUILDERS = {
    "intphys": intphys,
    "intphys2": intphys2,
    "inflevel": inflevel,
    "grasp": grasp,
    "mvp": mvp,
    "whatsup": whatsup,
    "vsr": vsr,
    "babi": babi,
    "stepgame": stepgame,
    "spartqa": spartqa,
    "ewok": ewok,
    "clevrer": clevrer,
    "physion": physion,
    "cater": cater,
    "vlmevalkit_tsv": vlmevalkit_tsv,
    "vsibench": vsibench,
    "spatialsoundqa": spatialsoundqa,
}
