"""Two tiny bases with random weights, as folders: TuxNano's architecture, and SmolVLM's."""

import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than one only slow down models as small as these

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import homework.models.clip
from benchmarks.random_smolvlm import save_smolvlm
from homework.base_vlm import MAX_NEW_TOKENS, BaseVLM
from homework.labels.scene import Kart
from homework.models.clip import CLIP, tokenize
from homework.models.images import clip_pixels
from homework.models.loading import (
    DEFAULT_BASE,
    backbone,
    load_base,
    load_model,
    load_processor,
    output_embedding,
    unwrap,
)
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.config import TextConfig, TuxNanoConfig, VisionConfig
from homework.models.tux_nano.model import TuxNano
from homework.models.tux_nano.processor import TOKENIZER_FILE
from homework.training.clip_dataset import CLIPTrainingModule, add_lora_to_clip
from homework.training.lora import PeftTrainingModule, add_lora
from homework.utils.images import open_image
from pretrain.compact_vocab import CompactVocabulary
from pretrain.dataset import AnnotatedScene, PretrainDataset

torch.set_num_threads(1)
homework.models.clip.NUM_THREADS = 1  # it was read at the import above

TEXT = TextConfig(
    hidden_size=48, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=12, vocab_size=49280
)
VISION = VisionConfig(
    channels=(8, 16, 16, 24),
    blocks=(0, 1, 1, 1),
    foveal_channels=(8, 16, 24),
    foveal_blocks=(1, 1, 0),
    hidden_size=64,
    num_layers=1,
    num_heads=4,
)
SMOLVLM = {
    "config.json": {
        "text_config": {
            **{"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12},
        },
        "vision_config": {
            **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "image_size": 64},
        },
        "scale_factor": 2,
    },
    "preprocessor_config.json": {"max_image_size": {"longest_edge": 64}, "size": {"longest_edge": 256}},
    "processor_config.json": {"image_seq_len": 4},
}
CONFIG = TuxNanoConfig(vision=VISION, text=TEXT)

TEXTS = ["tux is the ego car.", "The track is gran_paradiso_island.", "There are 10 karts in the scene."]

SCENE = AnnotatedScene(
    "abyss",
    (Kart(0, "tux", (60, 40, 90, 71)), Kart(1, "gnu", (10, 20, 40, 48)), Kart(2, "xue", (100, 60, 137, 91))),
)


@torch.no_grad()
def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights so large that image and question decide the answer.

    At the usual small ones the residual stream is little more than the last token's embedding, and a model
    answers everything alike.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        # convolutions keep the variance (arXiv:1502.01852), so that tokens depend on the image
        scale = 2**0.5 if "stages." in name else 2.5
        gain = 0.1 if "embed_tokens" in name else scale * weight[0].numel() ** -0.5
        weight.normal_(0, gain, generator=generator)
    return model


def save_tiny_nano(folder: Path) -> None:
    """Write a narrow TuxNano with the shipped tokenizer; tokens that no text holds share an embedding."""
    torch.manual_seed(0)
    model, vocab = stir(TuxNano(CONFIG), seed=2), CompactVocabulary(PromptTokens(load_processor(DEFAULT_BASE)))
    embedding = model.language_model.embed_tokens.weight.data
    others = vocab.row == len(vocab.used)
    embedding[others] = embedding[others.nonzero()[0]]
    model.save(folder)
    shutil.copy(Path(DEFAULT_BASE) / TOKENIZER_FILE, folder)


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory) -> Path:
    """A tiny base of our own architecture."""
    folder = tmp_path_factory.mktemp("bases") / "tiny_nano"
    save_tiny_nano(folder)
    return folder


@pytest.fixture(scope="session")
def smol_folder(tmp_path_factory) -> Path:
    """A tiny base of SmolVLM's architecture, its text model as wide as `nano_folder`'s."""
    folder = tmp_path_factory.mktemp("bases") / "tiny_smolvlm"
    save_smolvlm(folder, stir, SMOLVLM)
    return folder


@pytest.fixture(scope="session", params=["nano", "smolvlm"])
def base_folder(request) -> Path:
    """Each of the two tiny bases."""
    return request.getfixturevalue({"nano": "nano_folder", "smolvlm": "smol_folder"}[request.param])


@pytest.fixture(scope="session")
def loaded(base_folder):
    """(model, processor) of a tiny base; not to be changed."""
    return load_base(str(base_folder))


@pytest.fixture(scope="session")
def loaded_nano(nano_folder):
    """(model, processor) of the tiny base of our own architecture; not to be changed."""
    return load_base(str(nano_folder))


@pytest.fixture
def vlm(loaded) -> BaseVLM:
    """A BaseVLM of a tiny base; its model is not to be changed."""
    return BaseVLM.from_parts(*loaded)


@torch.no_grad()
def randomly_adapted(model: nn.Module, base: Path, exclude: str | None = None) -> nn.Module:
    """Return a PeftModel with LoRA whose weights are all random, where new ones are half zero."""
    peft_model = add_lora(model, 4, str(base), exclude)
    generator = torch.Generator().manual_seed(0)
    for weight in peft_model.parameters():
        if weight.requires_grad:
            weight.normal_(0, 0.05, generator=generator)
    return peft_model


def save_adapter(base: Path, folder: Path, rank: int = 2) -> None:
    """Write an untrained LoRA adapter of a base."""
    PeftTrainingModule(add_lora(load_model(str(base)), rank, str(base))).save_adapter(folder)


def save_clip(base: Path, folder: Path, rank: int = 4) -> None:
    """Write an untrained CLIP on a base's encoders."""
    torch.manual_seed(0)
    CLIPTrainingModule(add_lora_to_clip(CLIP.from_vlm(load_model(str(base))), rank, str(base))).save_adapter(folder)


@pytest.fixture
def adapted(base_folder) -> BaseVLM:
    """A tiny base with random LoRA."""
    model, processor = load_base(str(base_folder))
    return BaseVLM.from_parts(randomly_adapted(model, base_folder), processor)


@pytest.fixture(scope="session")
def views(tmp_path_factory) -> list[Path]:
    """Four images, each of another pattern."""
    folder, rng = tmp_path_factory.mktemp("views"), np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((150, 100), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def no_progress(tiny_data) -> Path:
    """`tiny_data` whose valid split has images but no frames: nothing is asked of it while training."""
    for info in (tiny_data / "valid").glob("*_info.json"):
        info.unlink()
    shutil.rmtree(tiny_data / ".cache", ignore_errors=True)
    return tiny_data


@pytest.fixture
def frames(tiny_data) -> PretrainDataset:
    """The tiny train split in memory."""
    return PretrainDataset(tiny_data, {"train": 1.0})


def stand_still(folder, times: int) -> None:
    """Give each frame of a split its own distances, and the first of them `times` copies."""
    for number, path in enumerate(sorted(folder.glob("*_info.json"))):
        info = json.loads(path.read_text())
        path.write_text(json.dumps(info | {"distance_down_track": [10.2 + number] * 5}))
    for copy in range(1, times):
        for path in list(folder.glob("00000_*")):
            shutil.copy(path, folder / path.name.replace("00000", f"000b{copy}"))


def build_clip(loaded, seed: int = 0) -> CLIP:
    """A new CLIP on the encoders of a tiny base, which are not to be changed."""
    torch.manual_seed(seed)
    return CLIP.from_vlm(loaded[0]).eval()


@torch.no_grad()
def features(model: nn.Module, tokenizer, images) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a CLIP's features of images and of `TEXTS`."""
    model.eval()
    return model(clip_pixels([open_image(path) for path in images]), **tokenize(TEXTS, tokenizer))[:2]


def is_tux_nano(vlm: BaseVLM) -> bool:
    return isinstance(unwrap(vlm.model), TuxNano)


def reference_logits(vlm: BaseVLM, image: Path, ids: list[int]) -> torch.Tensor:
    """Compute logits [s, tokens] of one unpacked sequence without a cache; for SmolVLM by transformers' own forward."""
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": vlm.pixel_values([image])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if not is_tux_nano(vlm):
        return vlm.model(**inputs).logits[0]
    return (backbone(vlm.model)(**inputs).last_hidden_state @ output_embedding(vlm.model).T)[0]


@torch.inference_mode()
def reference_answers(vlm: BaseVLM, images, questions) -> list:
    """Decode greedily, one question at a time; for SmolVLM by transformers' own `generate`, else token by token."""
    answers, tokens = [], vlm.tokens
    for image, question in zip(images, questions, strict=True):
        prompt = tokens.prefix + tokens.question(question)
        if is_tux_nano(vlm):
            ids = list(prompt)
            while len(ids) - len(prompt) < MAX_NEW_TOKENS and tokens.end not in ids[len(prompt) :]:
                ids.append(int(reference_logits(vlm, image, ids)[-1].argmax()))
        else:
            inputs = {"input_ids": torch.tensor([prompt]), "pixel_values": vlm.pixel_values([image])}
            settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "eos_token_id": tokens.end}
            ids = vlm.model.generate(**inputs, **settings, pad_token_id=2)[0].tolist()
        answers.append(tokens.decode(ids[len(prompt) :]))
    return answers
