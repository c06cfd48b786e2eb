"""nano/: what makes the base. Vocabulary, targets, augmentation and the loop that resumes."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoProcessor

from homework.checkpoint import EMBEDDED_BASE
from homework.errors import InputError
from homework.packing import PromptTokens
from homework.questions import captions, qa_pairs
from homework.scene import Kart, Scene
from nano.base import VOCABULARY
from nano.frames import Frames
from nano.targets import KART_ID, NONE, TRACK_ID, cell_targets, image_targets, mirror
from nano.text import batch_scenes
from nano.train import VisionStage, dense, ego_by_kart, image_logits
from nano.trainer import lr_factor, train_stage
from nano.vocabulary import SmallVocabulary, answer_texts, caption_texts

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
    assert flipped["size"].sum() == plain["size"].sum()
    assert plain["center"].sum() == 3 and set(np.unique(plain["kart"])) == {
        NONE,
        *map(KART_ID.get, ("tux", "gnu", "xue")),
    }


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


def pasted_batches(frames: Frames, batches: int = 20):
    """(targets, plain targets, row, view, donor, scene of the row) of each row of augmented batches."""
    for seed in range(batches):
        pixels, targets, index, mirrored = frames.augmented(np.random.default_rng(seed), 8, paste=1.0, crop=0.0)
        assert pixels.shape == (8, 3, 100, 150) and pixels.abs().max() <= 1
        _, plain = frames.batch(index, mirrored)
        scenes = batch_scenes(frames, index, targets["ego_from"], mirrored)
        for row, (view, donor) in enumerate(zip(index, targets["ego_from"].tolist(), strict=True)):
            yield targets, plain, row, view, donor, scenes[row]


def test_paste_changes_the_ego_labels_only(frames):
    """A pasted kart is another ego kart in the same place: every other label stays."""
    pasted = 0
    for targets, plain, row, view, donor, scene in pasted_batches(frames):
        for name in ("total", "track", "count", "relation", "center", "size"):
            assert torch.equal(targets[name][row], plain[name][row]), name
        if donor == view:
            assert all(torch.equal(targets[name][row], plain[name][row]) for name in ("ego", "kart", "token"))
            continue
        old, new = (KART_ID[frames.scenes[i].ego.name] for i in (view, donor))
        assert targets["ego"][row] == new
        # what the texts say of the scene and what the targets say are the same
        of_scene = image_targets([scene])
        assert of_scene["ego"][0] == new and of_scene["count"][0].tolist() == targets["count"][row].tolist()
        if old == new:
            continue
        pasted += 1
        kart, was = targets["kart"][row], plain["kart"][row]
        assert torch.equal(kart != was, was == old) and (kart[was == old] == new).all()
        token, before = targets["token"][row], plain["token"][row].clone()
        before[:, new] |= before[:, old]
        before[:, old] = False
        assert torch.equal(token, before)
    assert pasted > 10


def test_paste_of_the_same_kart_keeps_its_cells(frames):
    """Where the pasted kart is the same one, nothing is relabelled."""
    same = 0
    for targets, plain, row, view, donor, _ in pasted_batches(frames, 60):
        if donor != view and frames.scenes[view].ego.name == frames.scenes[donor].ego.name:
            same += 1
            assert all(torch.equal(targets[name][row], plain[name][row]) for name in ("ego", "kart", "token"))
    assert same


def test_paste_changes_pixels_of_the_ego_box_only(frames):
    """Nothing beside the ego kart's box changes in the image."""
    i, donor = next(
        (i, d)
        for i in range(len(frames))
        for d in frames.alone
        if d != i and len(frames.scenes[i].karts) > 1 and frames._paste(frames.views[i].copy(), frames.scenes[i], d)
    )
    view = frames.views[i].copy()
    frames._paste(view, frames.scenes[i], donor)
    x1, y1, x2, y2 = frames.scenes[i].ego.box
    changed = (view != frames.views[i]).any(-1)
    assert changed[y1 : y2 + 1, x1 : x2 + 1].any()
    changed[y1 : y2 + 1, x1 : x2 + 1] = False
    assert not changed.any()


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


def test_valid_is_not_trained_on(tiny_data, tmp_path):
    with pytest.raises(InputError, match="valid: a split to measure on"):
        dense(data=str(tiny_data), splits="train,valid", out=str(tmp_path), steps=1)
