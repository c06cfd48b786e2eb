"""nano/: what makes the base. Vocabulary, targets, augmentation and the loop that resumes."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoProcessor

from homework.checkpoint import EMBEDDED_BASE
from homework.errors import InputError
from homework.nano_model import TuxNanoVisionConfig, TuxNanoVisionModel
from homework.packing import PromptTokens
from homework.preprocess import normalise
from homework.questions import KINDS, QUESTIONS, ask, captions, qa_pairs
from homework.scene import Kart, Scene
from nano.base import VOCABULARY
from nano.frames import Frames, random_window, targets_of, zoomed
from nano.targets import IGNORE, KART_ID, NONE, TRACK_ID, cell_targets, image_targets, mirror
from nano.text import sample_pairs
from nano.train import VisionStage, begin_with, dense, ego_by_kart, image_logits
from nano.trainer import lr_factor, train_stage
from nano.vocabulary import SmallVocabulary, answer_texts, caption_texts
from nano.wording import REWORDED

from .conftest import VISION

SCENE = Scene(
    "abyss",
    (Kart(0, "tux", (60, 40, 90, 71)), Kart(1, "gnu", (10, 20, 40, 48)), Kart(2, "xue", (100, 60, 137, 91))),
)


@pytest.fixture(scope="module")
def tokens() -> PromptTokens:
    """The shipped processor's prompt parts."""
    return PromptTokens(AutoProcessor.from_pretrained(EMBEDDED_BASE))


@pytest.fixture(scope="module")
def vocabulary(tokens) -> SmallVocabulary:
    """The small vocabulary."""
    return SmallVocabulary(tokens)


def test_small_vocabulary_is_the_full_softmax(vocabulary):
    """Training with the small table minimises the loss of the whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    embedding = nn.Embedding(len(vocabulary), 16, dtype=torch.float64)
    with torch.no_grad():
        embedding.weight.normal_(generator=generator)
    hidden = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    ids = vocabulary.used[torch.randint(len(vocabulary.used), (20,), generator=generator)]
    small = vocabulary.cross_entropy(hidden, embedding.weight, vocabulary.row[ids])
    table = vocabulary.expand(embedding)
    assert table.shape == (VOCABULARY, 16)
    full = F.cross_entropy(hidden @ table.T, ids, reduction="none")
    assert torch.allclose(small, full, rtol=1e-10)


def test_small_vocabulary_knows_every_text(vocabulary, tokens):
    """No token of a prompt, question, answer or caption falls among the unused ones."""
    texts = [tokens.prefix, *map(tokens.answer, answer_texts()), *map(tokens.question, (q for q, _ in qa_pairs(SCENE)))]
    texts += [tokens.tokenizer(text + tokens.tokenizer.eos_token)["input_ids"] for text in caption_texts()]
    assert {i for ids in texts for i in ids} <= set(vocabulary.used.tolist())
    assert set(captions(SCENE)) <= set(caption_texts())
    assert {answer for _, answer in qa_pairs(SCENE)} <= set(answer_texts())
    assert len(vocabulary.used) < 500


def test_base_learns_other_words_for_the_same_answers():
    """The base is asked what the course asks, for the same answers, but never in the course's words."""
    rng = np.random.default_rng(0)
    official, asked = dict(qa_pairs(SCENE)), [pair for _ in range(50) for pair in sample_pairs(SCENE, rng)]
    assert not official.keys() & {question for question, *_ in asked}
    by_template = {row.template: row for row in REWORDED}
    assert len(by_template) == len(REWORDED) == 3 * len(QUESTIONS)
    kinds = Counter(row.kind for row, question, _ in ask(SCENE, REWORDED) if question in {q for q, *_ in asked})
    assert set(kinds) == set(KINDS)
    answers = {question: answer for _, question, answer in ask(SCENE, REWORDED)}
    assert all(answers[question] == answer for question, answer, _ in asked)
    assert answers["Does gnu drive to the left or right of the ego car?"] == "left"
    assert answers["Tell the place of xue relative to the ego car."] == "back and right"
    assert answers["Count the karts in front of the ego car."] == "1"


def test_mirror_swaps_left_and_right():
    """A flipped image's answers: left and right change places, all else stays."""
    before, after = dict(qa_pairs(SCENE)), dict(qa_pairs(mirror(SCENE)))
    swap = {"left": "right", "right": "left"}
    for question, answer in before.items():
        mirrored = " ".join(swap.get(word, word) for word in question.split()) if "How many" in question else question
        answered = answer if "How many" in question else " ".join(swap.get(word, word) for word in answer.split())
        assert after[mirrored] == answered, question
    assert before != after and mirror(mirror(SCENE)) == SCENE


def test_mirrored_image_targets():
    """The dense stage's numbers of a flipped image: counts left and right swapped, sides negated."""
    plain, flipped = image_targets([SCENE]), image_targets([mirror(SCENE)])
    for name in ("ego", "total", "track"):
        assert plain[name] == flipped[name]
    assert plain["ego"] == KART_ID["tux"] and plain["track"] == TRACK_ID["abyss"] and plain["total"] == 3
    assert flipped["count"][0].tolist() == plain["count"][0][[1, 0, 2, 3]].tolist() == [1, 1, 1, 1]
    for name in ("gnu", "xue"):
        there, left, front = plain["relation"][0, KART_ID[name]]
        assert flipped["relation"][0, KART_ID[name]].tolist() == [there, 1 - left, front]
    assert plain["relation"][0, KART_ID["tux"], 0] == 0  # the ego kart stands in no relation to itself


def test_mirrored_cell_maps():
    """A flipped scene's cells are the cells flipped: of a view of 19 columns 8 pixels apart, from 0 to 144."""
    # the grid's axis is at pixel 72 and the image's at 75: a scene that is 6 pixels wider on the right fits both
    plain = cell_targets([SCENE], width=150)
    shifted = Scene(
        SCENE.track, tuple(replace(k, box=(k.box[0] + 6, k.box[1], k.box[2] + 6, k.box[3])) for k in SCENE.karts)
    )
    flipped = cell_targets([mirror(shifted)], width=150)
    assert np.array_equal(flipped["kart"][0], plain["kart"][0][:, ::-1])
    assert np.array_equal(flipped["center"][0].sum(0), plain["center"][0].sum(0)[::-1])
    assert flipped["box"][..., :2].sum() == plain["box"][..., :2].sum()
    assert plain["center"].sum() == 3 and set(np.unique(plain["kart"])) == {
        NONE,
        *map(KART_ID.get, ("tux", "gnu", "xue")),
    }


def test_cells_tell_where_a_kart_is():
    """A centre's cell holds the box: log of its sides, and how far the centre is from the cell's middle, in cells."""
    maps = cell_targets([SCENE])
    x1, y1, x2, y2 = SCENE.karts[1].box  # centre (25, 34): row 4, whose middle is at 32, column 3, at 24
    assert maps["center"][0, 4, 3]
    assert maps["box"][0, 4, 3] == pytest.approx([np.log(x2 - x1), np.log(y2 - y1), 1 / 8, 2 / 8], abs=1e-2)
    assert not maps["box"][0][~maps["center"][0]].any()


def side_at(scene: Scene, row: int, column: int) -> list[int]:
    """(left, in front) of the cell of 16 pixels."""
    return cell_targets([scene])["side"].reshape(7, 10, 2)[row, column].tolist()


def test_cells_tell_the_sides_of_other_karts():
    """A cell says of the kart centred in it whether it is left and in front of the ego kart; others say nothing."""
    assert side_at(SCENE, 2, 2) == [1, 1]  # gnu
    assert side_at(SCENE, 5, 7) == [0, 0]  # xue
    side = cell_targets([SCENE])["side"]
    assert (side != IGNORE).sum() == 4  # the ego kart's cell has no side
    assert side_at(mirror(SCENE), 2, 8) == [0, 1]  # gnu, now on the right


def test_karts_of_one_cell_that_differ_have_no_side():
    """Two karts centred in a cell, both left, one in front: only what is true of both is told."""
    ego = Kart(0, "tux", (60, 30, 90, 60))
    above, below = Kart(1, "gnu", (28, 38, 40, 50)), Kart(2, "xue", (28, 44, 40, 56))
    third = Kart(3, "kiki", (28, 40, 40, 60))
    assert above.center[1] < ego.center[1] < below.center[1]
    for karts in ((above, below), (below, above), (above, below, third)):
        row, column = 3, 2
        assert side_at(Scene("abyss", (ego, *karts)), row, column) == [1, IGNORE]


def test_crop_drops_karts_outside():
    """Cells of the middle columns: a kart whose centre is cut off is in no cell's token."""
    inside = Scene("abyss", (SCENE.karts[0], Kart(1, "gnu", (0, 20, 20, 40))))
    token = cell_targets([inside], 25, 100)["token"][0]
    assert token[:, KART_ID["tux"]].any() and not token[:, KART_ID["gnu"]].any()
    assert token[:, NONE].sum() == 1  # the ego kart's cell


@pytest.fixture
def frames(tiny_data) -> Frames:
    """The tiny train split in memory."""
    return Frames(tiny_data, ["train"])


def flat(name: str, colour: str, box: tuple, background: str = "gray") -> tuple[np.ndarray, Scene]:
    """A view of one colour with a kart of another in the box."""
    image = Image.new("RGB", (150, 100), background)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return np.array(image), Scene("abyss", (Kart(0, name, box),))


def frames_of(*views: tuple[np.ndarray, Scene]) -> Frames:
    """Frames of given views, none more often than another."""
    frames = Frames.__new__(Frames)
    frames.views = np.stack([view for view, _ in views])
    frames.scenes = [scene for _, scene in views]
    return frames


def test_paste_replaces_the_ego_kart_alone():
    """Another view's ego kart takes the place of this one's: its name in the scene, its pixels in the box."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    scene = Scene(scene.track, (Kart(1, "gnu", (10, 10, 20, 20)), *scene.karts))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 81), "white"))
    before = view.copy()
    pasted, changed = frames._paste(view, scene, np.array([0]))
    assert np.array_equal(view, before)  # the views in memory stay as they are
    assert changed.ego.name == "kiki" and changed.ego.box == scene.ego.box and changed.others == scene.others
    assert (pasted[45:65, 65:85] == (0, 255, 0)).all()
    outside = np.ones((100, 150), bool)
    outside[40:71, 60:91] = False
    assert np.array_equal(pasted[outside], view[outside])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Kart(1, "kiki", (10, 10, 20, 20)), id="the kart is there already"),
        pytest.param(Kart(1, "gnu", (88, 40, 120, 70)), id="another kart in the box"),
    ],
)
def test_no_paste_where_other_labels_would_change(other):
    """Two karts of a name, or a kart that would be covered: the view stays as it is."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    scene = Scene(scene.track, (*scene.karts, other))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 81)))
    pasted, same = frames._paste(view, scene, np.array([0]))
    assert same is scene and np.array_equal(pasted, view)


def test_paste_takes_the_donor_of_the_same_shape():
    """A tall kart isn't squeezed into a wide box where another donor fits."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    frames = frames_of(*(flat(*donor) for donor in DONORS_BY_SHAPE))
    _, changed = frames._paste(view, scene, np.arange(3))
    assert changed.ego.name == "xue"


DONORS_BY_SHAPE = (
    ("kiki", "lime", (70, 20, 80, 90)),  # tall
    ("gnu", "blue", (70, 50, 82, 62)),  # of this shape, but it would be blown up
    ("xue", "cyan", (50, 30, 82, 62)),
)


def detection(kart: Kart) -> list[int]:
    """As a frame's info has it: in pixels of 600x400."""
    return [1, kart.track_id, *(4 * side for side in kart.box)]


def test_zoomed_view_is_labelled_by_the_rule():
    """Of a part of a view: a kart outside is gone, one that was too small counts, the ego is the new middle's."""
    karts = [
        Kart(0, "tux", (60, 40, 70, 50)),
        Kart(1, "gnu", (100, 60, 104, 64)),  # 4 pixels: too few
        Kart(2, "xue", (5, 5, 25, 25)),
    ]
    info = {"track": "abyss", "karts": ["tux", "gnu", "xue"], "detections": [[], list(map(detection, karts))]}
    view = np.zeros((100, 150, 3), np.uint8)
    view[60:65, 100:105] = 255
    whole, scene = zoomed(view, info, 1, (0.0, 0.0, 150.0))
    assert np.array_equal(whole, view) and [kart.name for kart in scene.karts] == ["tux", "xue"]
    assert scene.ego.box == karts[0].box
    image, scene = zoomed(view, info, 1, (50.0, 30.0, 100.0))  # on the right, 1.5 times as large
    assert {kart.name: kart.box for kart in scene.karts} == {"tux": (15, 15, 30, 30), "gnu": (75, 45, 81, 51)}
    assert scene.ego.name == "gnu"
    bright = np.argwhere(image[..., 0] > 127)
    assert np.abs(bright.min(0) - (45, 75)).max() <= 1 and np.abs(bright.max(0) - (52, 82)).max() <= 1


def test_windows_lie_in_the_view():
    """A part of a view is never larger than the view, nor beside it, and has its shape."""
    rng = np.random.default_rng(0)
    windows = np.array([random_window(rng) for _ in range(500)])
    left, top, width = windows.T
    assert (windows >= 0).all() and (left + width <= 150).all() and (top + width / 1.5 <= 100).all()
    assert 119 < width.min() < 125 and width.max() > 148


def test_augmented_batch_shows_what_its_scenes_say(frames):
    """Targets are those of the scenes; a mirrored image has the mirrored scene."""
    mirrored = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        pixels, targets, scenes = frames.augmented(rng, 8, paste=0, crop=0, zoom=0)
        assert pixels.shape == (8, 3, 100, 150) and pixels.abs().max() <= 1
        for name, target in targets_of(scenes).items():
            assert torch.equal(target, targets[name]), name
        for image, scene in zip(pixels, scenes, strict=True):
            flipped = scene not in frames.scenes
            plain = mirror(scene) if flipped else scene
            stored = normalise(frames.views[frames.scenes.index(plain)])
            stored = stored.flip(-1) if flipped else stored
            likeness = np.corrcoef(stored.flatten(), image.flatten())[0, 1]
            assert likeness > 0.9
            mirrored += flipped
    assert 20 < mirrored < 60


def test_cropped_batch_shows_the_middle(frames):
    """The columns of the grader's CLIP crop, with the targets of its cells and the whole view's scene."""
    pixels, targets, scenes = frames.augmented(np.random.default_rng(0), 4, crop=1.0)
    assert pixels.shape == (4, 3, 100, 100)
    assert targets["kart"].shape == (4, 13, 13) and targets["total"].tolist() == [len(s.karts) for s in scenes]


def test_crowded_views_can_be_drawn_more_often(frames):
    """Of the tiny split's 9 views 3 hold three karts, 3 two, 2 one and 1 none: with a chance of 7, 4 and 1."""
    shares = []
    for crowded in (0.0, 3.0):
        _, _, scenes = frames.augmented(np.random.default_rng(0), 400, crowded=crowded, zoom=0)
        shares.append(np.mean([len(scene.karts) > 1 for scene in scenes]))
    assert shares[0] == pytest.approx(6 / 9, abs=0.08) and shares[1] == pytest.approx(33 / 36, abs=0.06)


def stand_still(folder, times: int) -> None:
    """Give each frame of a split its own distances, and the first of them `times` copies."""
    for number, path in enumerate(sorted(folder.glob("*_info.json"))):
        info = json.loads(path.read_text())
        path.write_text(json.dumps(info | {"distance_down_track": [10.2 + number] * 5}))
    for copy in range(1, times):
        for path in list(folder.glob("00000_*")):
            shutil.copy(path, folder / path.name.replace("00000", f"000b{copy}"))


def test_repeated_moment_counts_as_its_root(tiny_data):
    """A moment taken 4 times over is drawn as often as 2, not 4; splits are drawn equally often."""
    stand_still(tiny_data / "train", 4)
    frames = Frames(tiny_data, ["train", "valid"])
    chances = dict.fromkeys(("repeated", "train", "valid"), 0.0)
    for file, chance in zip(frames.files, frames.chances, strict=True):
        repeated = file.startswith(("train/00000", "train/000b"))
        chances["repeated" if repeated else file.split("/")[0]] += chance
    # two of three moments of train are drawn once each
    assert chances["repeated"] == pytest.approx(2 / 4) and chances["train"] == pytest.approx(2 / 4)
    assert chances["valid"] == pytest.approx(1)


def test_held_out_moment_is_held_out_whole(tiny_data):
    """No copy of a moment that is kept for choosing is trained on."""
    stand_still(tiny_data / "train", 4)
    trained = Frames(tiny_data, ["train"], lambda moment: moment > 0)
    held_out = Frames(tiny_data, ["train"], lambda moment: moment == 0)
    assert len(held_out) == 4 * 3 and len(trained) == 2 * 3
    assert not {file.split("_")[0] for file in trained.files} & {file.split("_")[0] for file in held_out.files}


class Stopped(Exception):
    """A run that is cut short."""


def stage(folder, steps: int, stop_at: int | None = None, save_every: int = 3) -> nn.Module:
    """A tiny stage; with `stop_at`, it dies after so many steps."""
    torch.manual_seed(0)
    module, taken = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), []

    def loss_of(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        if stop_at is not None and len(taken) == stop_at:
            raise Stopped
        taken.append(1)
        x = torch.from_numpy(rng.standard_normal((16, 4), dtype=np.float32))
        return {"square": (module(x)[:, 0] - x.sum(1)).square().mean()}

    train_stage(
        module, loss_of, folder, "stage", steps, 1e-2, save_every=save_every, evaluate=lambda: {"accuracy": 1.0}
    )
    return module


def curve(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "stage.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("stop_at", [3, 5])
def test_resumed_stage_is_the_undisturbed_one(tmp_path, stop_at):
    """A stage that was stopped and run again ends with the same weights."""
    expected = stage(tmp_path / "whole", 6)
    with pytest.raises(Stopped):
        stage(tmp_path / "cut", 6, stop_at)
    resumed = stage(tmp_path / "cut", 6)
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    saved = [torch.load(tmp_path / run / "stage.pt", weights_only=True) for run in ("whole", "cut")]
    assert saved[0]["step"] == saved[1]["step"] == 6
    last = [curve(tmp_path / run)[-1] for run in ("whole", "cut")]
    assert last[0].keys() == last[1].keys() and last[0]["step"] == last[1]["step"] == 6


def test_resumed_stage_goes_on_with_its_curve(tmp_path):
    """Stopped where the last row of the curve was written, a stage has the curve of an undisturbed run."""
    stage(tmp_path / "whole", 100, save_every=50)
    with pytest.raises(Stopped):
        stage(tmp_path / "cut", 100, 60, save_every=50)
    stage(tmp_path / "cut", 100, save_every=50)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert [row["step"] for row in curve(tmp_path / "whole")] == [50, 100]


def test_finished_stage_returns_at_once(tmp_path):
    """A finished stage is neither trained nor logged again."""
    stage(tmp_path, 3)
    before, rows = (tmp_path / "stage.pt").read_bytes(), curve(tmp_path)
    stage(tmp_path, 3, stop_at=0)
    assert (tmp_path / "stage.pt").read_bytes() == before and curve(tmp_path) == rows


def test_checkpoint_of_another_geometry(tmp_path):
    """A checkpoint that does not fit: one line that names it."""
    torch.save({"step": 1, "model": {"other": torch.zeros(1)}, "optimizer": {}}, tmp_path / "stage.pt")
    with pytest.raises(InputError, match="stage.pt: not a checkpoint of this stage"):
        stage(tmp_path, 3)


def test_learning_rate_is_flat_between(tmp_path):
    """Up, flat, down: a longer run repeats a shorter one's rates up to where the shorter cools down."""
    short, long = ([lr_factor(step, steps) for step in range(700)] for steps in (1000, 2000))
    assert short == long and short[0] == 1 / 200 and short[500] == 1.0
    assert lr_factor(999, 1000) < 0.01


def test_frames_of_several_splits_are_one(tiny_data, frames):
    both = Frames(tiny_data, ["train", "valid"])
    alone = Frames(tiny_data, ["valid"])
    assert both.files == frames.files + alone.files
    assert np.array_equal(both.views[len(frames) :], alone.views)


def test_every_ego_kart_is_counted_once(frames):
    counted = ego_by_kart(image_logits(VisionStage().eval(), frames, batch=2))
    karts = Counter(scene.ego.name for scene in frames.scenes if scene.ego)
    assert {kart: views for kart, (_, views) in counted.items()} == dict(karts)
    assert all(0 <= right <= views for right, views in counted.values())


def test_more_attention_layers_begin_as_the_identity(tmp_path):
    """A tower of two attention layers goes on as one of more, seeing what it saw before."""
    torch.manual_seed(0)
    small = TuxNanoVisionModel(TuxNanoVisionConfig(**VISION, batch_norm=True)).eval()
    large = TuxNanoVisionModel(TuxNanoVisionConfig(**VISION | {"num_hidden_layers": 3}, batch_norm=True)).eval()
    file = tmp_path / "stage.safetensors"
    save_file({f"tower.{name}": weight for name, weight in small.state_dict().items()}, file)
    begin_with(large, file)
    pixels = torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        assert torch.equal(small(pixels).last_hidden_state, large(pixels).last_hidden_state)


def test_a_run_can_begin_with_the_checkpoint_of_another(tmp_path):
    """As with the saved stage, the tower is taken over from a `.pt` file."""
    config = TuxNanoVisionConfig(**VISION, batch_norm=True)
    first, second = (TuxNanoVisionModel(config) for _ in range(2))
    file = tmp_path / "dense.pt"
    torch.save({"step": 1, "model": {f"tower.{k}": v for k, v in first.state_dict().items()}, "optimizer": {}}, file)
    begin_with(second, file)
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())


@pytest.mark.parametrize("saved", ["other channels", "no tower", "no stage"])
def test_what_no_tower_can_begin_with(tmp_path, saved):
    """One line that names the file."""
    file = tmp_path / "stage.safetensors"
    if saved == "no stage":
        file.write_bytes(b"broken")
    else:
        other = TuxNanoVisionModel(TuxNanoVisionConfig(**VISION | {"channels": (8, 8, 16, 24)}, batch_norm=True))
        prefix = "tower" if saved == "other channels" else "heads"
        save_file({f"{prefix}.{name}": weight for name, weight in other.state_dict().items()}, file)
    with pytest.raises(InputError, match="stage.safetensors"):
        begin_with(TuxNanoVisionModel(TuxNanoVisionConfig(**VISION, batch_norm=True)), file)


def test_valid_is_not_trained_on(tiny_data, tmp_path):
    with pytest.raises(InputError, match="valid: a split to measure on"):
        dense(data=str(tiny_data), splits="train,valid", out=str(tmp_path), steps=1)
