"""The exported data is read by the trainers and the evaluation that it is made for. Slow: each imports much."""

import json

import pytest

from homework.labels.rows import VQADataset

pytestmark = pytest.mark.slow

SFT = """
import json, sys
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

data, base, output = sys.argv[1:]
rows = load_dataset(data, "messages", split="train")
processor = AutoProcessor.from_pretrained(base, do_image_splitting=False, do_resize=False)
settings = SFTConfig(output, max_steps=3, per_device_train_batch_size=2, logging_steps=1, report_to=[], use_cpu=True,
                     bf16=False, max_length=None, gradient_checkpointing=False, save_strategy="no", learning_rate=1e-3)
trainer = SFTTrainer(AutoModelForImageTextToText.from_pretrained(base), settings, train_dataset=rows,
                     processing_class=processor)
trainer.train()
(batch,) = [trainer.data_collator([rows[0]])]
print(json.dumps({
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "text": processor.tokenizer.decode(batch["input_ids"][0]),
    "pixels": list(batch["pixel_values"].shape),
}))
"""

OPEN_CLIP = """
import json, sys
from open_clip_train.data import get_wds_dataset
from types import SimpleNamespace
from torchvision.transforms import ToTensor

shards, number = sys.argv[1], int(sys.argv[2])
arguments = SimpleNamespace(train_data=shards, train_num_samples=number, train_data_upsampling_factors=None, seed=0,
                            dataset_resampled=False, batch_size=4, workers=1, world_size=1)
data = get_wds_dataset(arguments, ToTensor(), is_train=True, tokenizer=lambda text: [text])
batches = [(list(images.shape[1:]), list(texts)) for images, texts in data.dataloader]
print(json.dumps(batches))
"""


@pytest.fixture
def exported(in_export_env, tiny_data, tmp_path):
    """Export the tiny train split."""
    in_export_env("-m", "export", "dataset", "--data", tiny_data, "--output", tmp_path / "out")
    return tmp_path / "out"


def test_trl_trains_on_the_rows(in_export_env, exported, smol_folder, tmp_path):
    """Three steps of its SFT trainer with a tiny Idefics3: the loss falls, and the prompt is as in our training."""
    result = in_export_env(exported, smol_folder, tmp_path / "sft", script=SFT, OMP_NUM_THREADS="1")
    assert len(result["losses"]) == 3 and result["losses"][2] < result["losses"][0]
    assert result["text"].endswith(
        "<fake_token_around_image>What kart is the ego car?<end_of_utterance>\nAssistant: tux<end_of_utterance>\n"
    )
    assert result["pixels"][-2:] == [64, 64]


def test_open_clip_reads_the_shards(in_export_env, exported, tiny_data):
    """Its own WebDataset reader gives every image with its caption."""
    captions = [row["caption"] for row in json.loads((tiny_data / "train/generated_captions.json").read_text())]
    shard = exported / "webdataset/train-00000.tar"
    batches = in_export_env(shard, len(captions) - len(captions) % 4, script=OPEN_CLIP, OMP_NUM_THREADS="1")
    assert all(shape == [3, 100, 150] for shape, _ in batches)
    read = [text for _, texts in batches for text in texts]
    assert len(read) >= len(captions) - 3 and set(read) <= set(captions)


def test_lmms_eval_measures_a_model(in_export_env, tiny_data, tmp_path):
    """Its dummy model answers `tux` to all: the scores are those of that answer."""
    output = tmp_path / "task"
    in_export_env("-m", "export", "lmms-eval", "--data", tiny_data, "--output", output)
    command = ("-m", "lmms_eval", "eval", "--tasks", "tux_vlm", "--include_path", output, "--model", "dummy")
    in_export_env(*command, "--model_args", "response=Tux ", "--output_path", tmp_path / "scores", OMP_NUM_THREADS="1")
    (file,) = (tmp_path / "scores").rglob("*_results.json")
    scores = {
        name.partition(",")[0]: value for name, value in json.loads(file.read_text())["results"]["tux_vlm"].items()
    }
    answers = [row["answer"] for row in VQADataset("valid_grader", tiny_data)]
    assert len(answers) == 5 and scores["prefix_match"] == scores["exact"] == answers.count("tux") / 5
    assert scores["prefix_match_ego"] == float("tux" in answers)
