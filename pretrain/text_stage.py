"""Text stage: train text model and connector on captions and questions, with the vision encoder frozen."""

import numpy as np
import torch
from torch import Tensor, nn

from homework.labels.questions import QUESTION_TYPES, captions, generate_questions, sample_weight
from homework.labels.scene import Scene
from homework.models.clip import CLIP, tokenize
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.model import TuxNano
from homework.training.packing import IGNORE_INDEX, collate, pack

from .assemble import init_weights, make_config
from .compact_vocab import CompactVocabulary, caption_texts
from .dense_heads import DenseHeads, copy_heads_to_connector
from .paraphrases import PARAPHRASED_QUESTIONS
from .synthetic_scenes import ideal_predictions, list_all_karts_qa, sample_scenes

QUESTIONS_PER_TYPE = {"ego": 1, "total": 1, "track": 1, "relation": 4, "count": 2}  # per view
SYNTHETIC_BATCH_SIZE = 8  # scenes per step: the number of steps matters here, not the size of a batch

QAPair = tuple[str, str, float]  # question, answer, loss weight


class TextStage(nn.Module):
    """TuxNano with a compact vocabulary, and a CLIP on its encoders.

    Vision encoder and heads, those in the connector too, are the dense stage's and frozen: a text model would distort
    the encoder's attention while it learns to read it.
    """

    def __init__(self, vision: VisionConfig, tokens: PromptTokens):
        super().__init__()
        self.tokens, self.vocabulary = tokens, CompactVocabulary(tokens)
        image_token_id = tokens.tokenizer.convert_tokens_to_ids("<image>")
        # token ids are rows of the compact table, that of the image token too
        config = make_config(vision, len(self.vocabulary), int(self.vocabulary.row[image_token_id]))
        self.model = init_weights(TuxNano(config))
        self.heads = DenseHeads(vision)
        self.clip = CLIP(self.vision_encoder, self.model.language_model, self.connector.prediction_heads)
        for part in (self.vision_encoder, self.heads, self.connector.prediction_heads):
            part.requires_grad_(False)
        self.captions = caption_texts()
        encoded = tokenize(self.captions, tokens.tokenizer)
        self.caption_ids, self.caption_mask = self.vocabulary.row[encoded["input_ids"]], encoded["attention_mask"]
        self.prior_logits = torch.zeros(len(self.captions))
        self.perturb_predictions = True  # in training mode

    @property
    def vision_encoder(self) -> nn.Module:
        """The vision encoder."""
        return self.model.vision_encoder

    @property
    def connector(self) -> nn.Module:
        """The connector over predicted attributes."""
        return self.model.connector

    def load_vision(self, encoder: nn.Module, heads: DenseHeads) -> None:
        """Copy a dense stage's encoder and heads, the latter into the connector too."""
        self.vision_encoder.load_state_dict(encoder.state_dict())
        self.vision_encoder.to(memory_format=torch.channels_last)
        self.heads.load_state_dict(heads.state_dict())
        copy_heads_to_connector(self.connector.prediction_heads, heads)

    @torch.no_grad()
    def init_connector(self) -> None:
        """Reinitialise the connector so that a token's content weighs as much as its slot embedding."""
        for weight in (
            self.connector.count_projection.weight,
            self.connector.track_projection.weight,
            self.connector.slot_embedding.weight,
        ):
            nn.init.normal_(weight)
        nn.init.normal_(self.connector.kart_projection.weight, std=0.7)

    def train(self, mode: bool = True) -> "TextStage":
        """Set the mode of all modules but the frozen encoder, whose batch norms stay in eval mode."""
        super().train(mode)
        self.vision_encoder.eval()
        self.connector.train(mode and self.perturb_predictions)
        return self

    def losses(self, pixels: Tensor, scenes: list[Scene], rng: np.random.Generator, whole: bool) -> dict[str, Tensor]:
        """Compute the losses of captions, of questions (if `whole` views are shown), and of synthetic scenes."""
        with torch.no_grad():
            tokens = self.vision_encoder(pixels).last_hidden_state
        losses = {}
        image_features = self.clip.project_image(self.clip.pool_vision_tokens(tokens))
        text_features = self.clip.encode_text(self.caption_ids, self.caption_mask)
        targets = self.caption_targets(scenes)
        losses["captions"] = 0.5 * self.clip.loss(image_features, text_features, targets, self.prior_logits)
        if whole:
            pairs = [sample_pairs(scene, rng) for scene in scenes]
            losses["questions"] = self._question_loss(self.connector(tokens), pairs)
        return losses | self.synthetic_losses(rng)

    def synthetic_losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Compute the loss of questions about synthetic scenes."""
        scenes = sample_scenes(rng, SYNTHETIC_BATCH_SIZE)
        pairs = [[*sample_pairs(scene, rng), *list_all_karts_qa(scene, rng)] for scene in scenes]
        return {
            "synthetic": self._question_loss(self.connector.embed_predictions(ideal_predictions(scenes, rng)), pairs)
        }

    def caption_targets(self, scenes: list[Scene]) -> Tensor:
        """Build the matrix [b, captions] that is 1 where a caption is true of a scene."""
        true = [set(captions(scene)) for scene in scenes]
        return torch.tensor([[float(caption in texts) for caption in self.captions] for texts in true])

    def _question_loss(self, image_features: Tensor, pairs: list[list[QAPair]]) -> Tensor:
        """Compute the answers' weighted loss, given each view's connector output [b, image_seq_len, d]."""
        packed = [pack(self.tokens, view_pairs) for view_pairs in pairs]
        batch = collate(packed, torch.empty(0), pad_id=2)
        rows = self.vocabulary.row[batch["input_ids"]]
        embedding = self.model.language_model.embed_tokens
        hidden_states = self.model.language_model(
            inputs_embeds=self.model.insert_image_tokens(rows, embedding(rows), image_features),
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        is_answer = batch["labels"] != IGNORE_INDEX
        labels = self.vocabulary.row[batch["labels"][is_answer]]
        loss = self.vocabulary.cross_entropy(hidden_states[is_answer], embedding.weight, labels)
        weights = batch["weights"]
        return 5 * (loss * weights[is_answer]).sum() / weights.sum()


def sample_pairs(scene: Scene, rng: np.random.Generator) -> list[QAPair]:
    """Sample a few of a scene's paraphrased questions of each type, with answers and loss weights."""
    pairs_by_type = {kind: [] for kind in QUESTION_TYPES}
    for row, question, answer in generate_questions(scene, PARAPHRASED_QUESTIONS):
        pairs_by_type[row.question_type].append((question, answer, sample_weight(row.question_type, answer)))
    orders = {kind: rng.permutation(len(pairs)) for kind, pairs in pairs_by_type.items()}
    return [pairs_by_type[kind][i] for kind, order in orders.items() for i in order[: QUESTIONS_PER_TYPE.get(kind, 1)]]
