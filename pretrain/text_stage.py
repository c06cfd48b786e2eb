"""The stages `read` and `text`: train text model and connector, with the vision encoder frozen.

In most real views the numbers of karts give away on which side a kart is, so a text model trained on views alone never
learns to attend to the token of the kart that a question names. Hence the synthetic scenes, encoded as ideal connector
inputs: in them karts are many and stand anywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from homework.labels import questions
from homework.labels.scene import VIEW_SIZE, Scene
from homework.models.clip import CLIP, class_prior_logits, tokenize
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.model import TuxNano
from homework.training.packing import IGNORE_INDEX, collate, pack

from .assemble import init_weights, make_config
from .box_decoder import BoxDecoder
from .boxes import BoxEncoder
from .compact_vocab import CompactVocabulary, caption_texts
from .config import RunConfig
from .dataset import PretrainDataset
from .dense_heads import copy_heads_to_connector
from .paraphrases import sample_questions
from .synthetic_scenes import QAPair, ideal_predictions, list_all_karts_qa, sample_scenes
from .targets import KARTS
from .vision_stages import load_average, load_vision_stage

FIRST_LOW_FREQ_DIM = 6  # pairs of a head's dimensions from here on rotate little over the length of a prompt
CODE_SHARE = 0.5  # length of a kart's code beside the rest of an embedding
MATCH_LOGIT = 12.0  # attention logit of a name and its kart's token

Questions = dict[str, Tensor]  # packed questions, see `TextStage.pack`


class TextStage(nn.Module):
    """TuxNano with a compact vocabulary, and a CLIP on its encoders.

    Vision encoder and heads, those in the connector too, are the stage `vision`'s and frozen: a text model would
    distort the encoder's attention while it learns to read it.
    """

    def __init__(self, config: RunConfig, tokens: PromptTokens, views: PretrainDataset | None = None):
        super().__init__()
        self.config, self.tokens, self.views = config, tokens, views
        self.vocabulary = CompactVocabulary(tokens, config.words.common_tokens)
        image_token_id = tokens.tokenizer.convert_tokens_to_ids("<image>")
        # token ids are rows of the compact table, that of the image token too
        sizes = make_config(
            config.vision_config, config.text, len(self.vocabulary), int(self.vocabulary.row[image_token_id])
        )
        self.model = TuxNano(sizes)
        if config.shape == "boxes":
            self.model.vision_encoder = BoxEncoder(config.vision_config)
            self.model.connector.prediction_heads = BoxDecoder()
        init_weights(self.model)
        self.clip = CLIP(self.model.vision_encoder, self.model.language_model, self.model.connector.prediction_heads)
        for part in (self.model.vision_encoder, self.model.connector.prediction_heads):
            part.requires_grad_(False)
        self.captions = caption_texts()
        encoded = tokenize(self.captions, tokens.tokenizer)
        prior = torch.zeros(len(self.captions)) if views is None else self._prior_logits(views.scenes)
        for name, value in (
            ("caption_ids", self.vocabulary.row[encoded["input_ids"]]),
            ("caption_mask", encoded["attention_mask"]),
            ("prior_logits", prior),
        ):
            self.register_buffer(name, value, persistent=False)
        self.perturb_predictions = True  # in training mode

    def load_previous(self, run_dir: Path) -> None:
        """Take over the weights of the run's stages `vision` and `read`."""
        vision = load_vision_stage(self.config, run_dir)
        self.model.vision_encoder.load_state_dict(vision.vision_encoder.state_dict())
        self.model.vision_encoder.to(memory_format=torch.channels_last)
        if self.config.shape == "cells":
            copy_heads_to_connector(self.model.connector.prediction_heads, vision.heads)
        load_average(self, run_dir / "read.pt")

    def init_connector(self) -> None:
        """Reinitialise the connector so that a token's content weighs as much as its slot embedding."""
        connector = self.model.connector
        for module in (connector.count_projection, connector.track_projection, connector.slot_embedding):
            nn.init.normal_(module.weight)
        nn.init.normal_(connector.kart_projection.weight, std=0.7)

    def train(self, mode: bool = True) -> "TextStage":
        """Set the mode of all modules but the frozen encoder, whose batch norms stay in eval mode."""
        super().train(mode)
        self.model.vision_encoder.eval()
        self.model.connector.train(mode and self.perturb_predictions)
        return self

    def sample(self, rng: np.random.Generator, as_rendered: bool) -> dict:
        """Make a batch: views with captions, and questions if they are shown whole; and synthetic scenes."""
        size = self.config.stages["text"].batch_size
        pixels, scenes, _ = self.views.sample_batch(rng, size, self.config.augment)
        batch = {"pixels": pixels, "captions": self.caption_targets(scenes)} | self.sample_synthetic(rng)
        if pixels.shape[-1] == VIEW_SIZE[0]:
            batch["questions"] = self.pack([self.sample_pairs(scene, rng) for scene in scenes])
        return batch

    def sample_synthetic(self, rng: np.random.Generator) -> dict:
        """Make a batch of questions about synthetic scenes."""
        scenes = sample_scenes(rng, self.config.words.synthetic_scenes)
        pairs = [[*self.sample_pairs(scene, rng), *list_all_karts_qa(scene, rng)] for scene in scenes]
        return {"predictions": ideal_predictions(scenes, rng), "synthetic": self.pack(pairs)}

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Compute the losses of captions, of questions, and of synthetic scenes, as far as the batch has them."""
        losses = {}
        if "pixels" in batch:
            with torch.no_grad():
                tokens = self.model.vision_encoder(batch["pixels"]).last_hidden_state
            image_features = self.clip.project_image(self.clip.pool_vision_tokens(tokens))
            text_features = self.clip.encode_text(self.caption_ids, self.caption_mask)
            losses["captions"] = 0.5 * self.clip.loss(
                image_features, text_features, batch["captions"], self.prior_logits
            )
        if "questions" in batch:
            losses["questions"] = self._question_loss(self.model.connector(tokens), batch["questions"])
        image_features = self.model.connector.embed_predictions(batch["predictions"])
        return losses | {"synthetic": self._question_loss(image_features, batch["synthetic"])}

    def sample_pairs(self, scene: Scene, rng: np.random.Generator) -> list[QAPair]:
        """Sample a few of a scene's questions of each type in other words, with answers and loss weights."""
        return sample_questions(scene, rng, self.config.words.questions)

    def caption_targets(self, scenes: Sequence[Scene]) -> Tensor:
        """Build the matrix [b, captions] that is 1 where a caption is true of a scene."""
        column = {caption: i for i, caption in enumerate(self.captions)}
        targets = torch.zeros(len(scenes), len(column))
        for row, scene in enumerate(scenes):
            # a caption about a kart that the game does not have has no column
            targets[row, [column[caption] for caption in questions.captions(scene) if caption in column]] = 1
        return targets

    def pack(self, pairs: list[list[QAPair]]) -> Questions:
        """Pack the (question, answer, weight) of each view, with rows of the compact vocabulary as ids and labels."""
        batch = collate([pack(self.tokens, view_pairs) for view_pairs in pairs], torch.empty(0), pad_id=2)
        labels = batch.pop("labels")
        batch["is_answer"], batch["ids"] = labels != IGNORE_INDEX, self.vocabulary.row[batch.pop("input_ids")]
        return batch | {"labels": self.vocabulary.row[labels[batch["is_answer"]]]}

    def answer_states(self, image_features: Tensor, batch: Questions) -> Tensor:
        """Compute the hidden states [n, d] that predict the answers' tokens, given each view's image tokens."""
        embedded = self.model.language_model.embed_tokens(batch["ids"])
        return self.model.language_model(
            inputs_embeds=self.model.insert_image_tokens(batch["ids"], embedded, image_features),
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state[batch["is_answer"]]

    def _question_loss(self, image_features: Tensor, batch: Questions) -> Tensor:
        """Compute the answers' weighted loss, given each view's connector output [b, image_seq_len, d]."""
        table = self.model.language_model.embed_tokens.weight
        loss = self.vocabulary.cross_entropy(self.answer_states(image_features, batch), table, batch["labels"])
        return 5 * (loss * batch["weights"][batch["is_answer"]]).sum() / batch["weights"].sum()

    def _prior_logits(self, scenes: list[Scene]) -> Tensor:
        types = [questions.classify_caption(caption) for caption in self.captions]
        return class_prior_logits(self.caption_targets(scenes).mean(0), types)


class ReadStage(TextStage):
    """The text stage on synthetic scenes alone, from random weights: it learns to attend to the kart that is named."""

    def __init__(self, config: RunConfig, tokens: PromptTokens):
        super().__init__(config, tokens)
        self.init_connector()
        if config.parts.name_matching_head:
            init_name_matching_head(self, config.seed)
        self.perturb_predictions = False

    def load_previous(self, run_dir: Path) -> None:
        """Begin from random weights."""

    def sample(self, rng: np.random.Generator, as_rendered: bool) -> dict:
        """Make a batch of synthetic scenes."""
        return self.sample_synthetic(rng)


@torch.no_grad()
def init_name_matching_head(stage: TextStage, seed: int = 0) -> None:
    """Let the first head of the first layer match a kart's name with the kart's token; freeze that head.

    To answer about a named kart, the text model has to find that token, move its content to the name, and from there to
    the answer. None of these steps pays off alone: after 500 batches of 8 synthetic scenes the model still guessed
    sides from the numbers of karts (81 % correct); with the first step initialised here it had 99.3 %.

    Each kart has a code in a subspace of the embeddings that is cleared of all else: in its name's tokens and in its
    slot, where queries and keys find it. So no other word matches anything, however many have an embedding.
    """
    connector, row = stage.model.connector, stage.vocabulary.row
    embedding, attention = (
        stage.model.language_model.embed_tokens.weight,
        stage.model.language_model.layers[0].self_attn,
    )
    size, width, generator = attention.head_dim, embedding.shape[1], torch.Generator().manual_seed(seed)
    dims = torch.arange(FIRST_LOW_FREQ_DIM, size // 2)
    dims = torch.cat([dims, dims + size // 2])
    codes = nn.init.orthogonal_(torch.empty(len(KARTS), len(dims)), generator=generator)
    codes /= codes.norm(dim=1, keepdim=True)
    # orthogonal to a constant vector, which the connector's LayerNorm subtracts
    directions = torch.cat([torch.ones(width, 1), torch.randn(width, len(dims), generator=generator)], dim=1)
    basis = torch.linalg.qr(directions)[0][:, 1:]  # [d, dims]
    # a token's code is the mean of those of the karts whose name it is a part of, and 0 for all other tokens
    names = [row[stage.tokens.tokenizer(f" {kart}", add_special_tokens=False)["input_ids"]] for kart in KARTS]
    token_codes, num_names = torch.zeros(len(embedding), len(dims)), torch.zeros(len(embedding), 1)
    slot_codes = torch.zeros(len(connector.slot_embedding.weight), len(dims))
    for number, (name, code) in enumerate(zip(names, codes, strict=True)):
        token_codes[name] += code
        num_names[name] += 1
        slot_codes[number] = code
        word = embedding[name].sum(0)  # the output layer shares the embedding: a slot can be read out as its name
        connector.slot_embedding.weight[number] = word / word.std()
    _write_codes(embedding, basis, token_codes / num_names.clamp(min=1))
    _write_codes(connector.slot_embedding.weight, basis, slot_codes)
    for content in (connector.kart_projection, connector.count_projection, connector.track_projection):
        content.weight -= basis @ (basis.T @ content.weight)
    # a normalised vector has the length of the root of its width
    gain = (1 + CODE_SHARE**2) ** 0.5 / (CODE_SHARE * width**0.5)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:size] = 0
        projection.weight[dims] = (MATCH_LOGIT * size**0.5) ** 0.5 * gain * basis.T
        projection.weight.register_hook(lambda gradient: torch.cat([0 * gradient[:size], gradient[size:]]))


def _write_codes(vectors: Tensor, basis: Tensor, codes: Tensor) -> None:
    """Replace the part of vectors [n, d] in the space of a basis [d, k] by codes [n, k], scaled to the rest."""
    vectors -= vectors @ basis @ basis.T
    vectors += CODE_SHARE * vectors.norm(dim=1, keepdim=True) * (codes @ basis.T)
