"""The second stage: captions and questions through the text model, on top of the trained tower, which is held still."""

import numpy as np
import torch
from torch import Tensor, nn

from homework.clip import tokenize
from homework.labels.questions import QUESTION_TYPES, captions, generate_questions, sample_weight
from homework.labels.scene import Scene
from homework.models.clip import CLIP
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.modeling_hf import TuxNanoForConditionalGeneration, TuxNanoVisionConfig
from homework.training.packing import IGNORE, collate, pack

from .assemble import make_config
from .compact_vocab import SmallVocabulary, caption_texts
from .dense_heads import DenseHeads, recognise_as
from .paraphrases import REWORDED
from .synthetic_scenes import imagine, listing, recognised_of

PAIRS_A_KIND = {"ego": 1, "total": 1, "track": 1, "relation": 4, "count": 2}
IMAGINED = 8  # scenes a batch: that there are many batches counts here, not how large they are


class TextStage(nn.Module):
    """The whole base with a small vocabulary, and a CLIP on its encoders.

    The tower, its teaching heads and what the connector recognises by them are a dense stage's, and stay so: a text
    model pulls at the tower's attention while it learns to read it.
    """

    def __init__(self, vision: TuxNanoVisionConfig, tokens: PromptTokens):
        super().__init__()
        self.tokens, self.vocabulary = tokens, SmallVocabulary(tokens)
        config = make_config(vision, len(self.vocabulary))
        # ids become rows of the small table, for the image token too
        config.image_token_id = int(self.vocabulary.row[config.image_token_id])
        config.text_config.pad_token_id = int(self.vocabulary.row[config.text_config.pad_token_id])
        self.model = TuxNanoForConditionalGeneration(config)
        self.heads = DenseHeads(vision)
        self.clip = CLIP(self.tower, self.model.model.text_model, self.connector.recogniser)
        for part in (self.tower, self.heads, self.connector.recogniser):
            part.requires_grad_(False)
        self.captions = caption_texts()
        self.caption_index = {text: index for index, text in enumerate(self.captions)}
        encoded = tokenize(self.captions, tokens.tokenizer)
        self.caption_ids, self.caption_mask = self.vocabulary.row[encoded["input_ids"]], encoded["attention_mask"]
        self.prior_logits = torch.zeros(len(self.captions))
        self.doubts = True  # while it learns from views

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.model.model.vision_model

    @property
    def connector(self) -> nn.Module:
        """What tells the text model of a view."""
        return self.model.model.connector

    def take_over(self, tower: nn.Module, heads: DenseHeads) -> None:
        """A dense stage's tower and heads; the connector recognises as they do."""
        self.tower.load_state_dict(tower.state_dict())
        self.tower.to(memory_format=torch.channels_last)
        self.heads.load_state_dict(heads.state_dict())
        recognise_as(self.connector.recogniser, heads)

    @torch.no_grad()
    def weigh_facts(self) -> None:
        """Begin the connector anew: what it tells of a kart weighs as much as which kart it is."""
        for weight in (self.connector.number.weight, self.connector.track.weight, self.connector.slot.weight):
            nn.init.normal_(weight)
        nn.init.normal_(self.connector.kart.weight, std=0.7)

    def train(self, mode: bool = True) -> "TextStage":
        """As usual, but the tower's batch norms stay as the dense stage left them."""
        super().train(mode)
        self.tower.eval()
        self.connector.train(mode and self.doubts)
        return self

    def losses(self, pixels: Tensor, scenes: list[Scene], rng: np.random.Generator, whole: bool) -> dict[str, Tensor]:
        """Loss by name: questions (on whole views only) and captions."""
        with torch.no_grad():
            tokens = self.tower(pixels).last_hidden_state
        losses = {}
        vision = self.clip.project_image(self.clip.pool_vision_tokens(tokens))
        text = self.clip.encode_text(self.caption_ids, self.caption_mask)
        losses["captions"] = 0.5 * self.clip.loss(vision, text, self.truth(scenes), self.prior_logits)
        if whole:
            pairs = [sample_pairs(scene, rng) for scene in scenes]
            losses["questions"] = self._question_loss(self.connector(tokens), pairs)
        return losses | self.imagined_loss(rng)

    def imagined_loss(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Questions about scenes that nobody saw."""
        scenes = imagine(rng, IMAGINED)
        pairs = [[*sample_pairs(scene, rng), *listing(scene, rng)] for scene in scenes]
        return {"imagined": self._question_loss(self.connector.tell(recognised_of(scenes, rng)), pairs)}

    def truth(self, scenes: list[Scene]) -> Tensor:
        """[b, captions], 1 where a caption is true of a scene."""
        truth = torch.zeros(len(scenes), len(self.captions))
        for row, scene in enumerate(scenes):
            known = [self.caption_index[text] for text in captions(scene) if text in self.caption_index]
            truth[row, known] = 1
        return truth

    def _question_loss(self, told: Tensor, pairs: list[list[tuple[str, str, float]]]) -> Tensor:
        """Of a few (question, answer, weight) of each view, by what the connector tells of it [b, image_seq_len, d]."""
        packed = [pack(self.tokens, of_view) for of_view in pairs]
        batch = collate(packed, torch.empty(0), pad_id=2)
        rows = self.vocabulary.row[batch["input_ids"]]
        embedding = self.model.get_input_embeddings()
        merged = self.model.model.inputs_merger(rows, embedding(rows), told)
        hidden = self.model.model.text_model(
            inputs_embeds=merged,
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        asked = batch["labels"] != IGNORE
        labels = self.vocabulary.row[batch["labels"][asked]]
        loss = self.vocabulary.cross_entropy(hidden[asked], embedding.weight, labels)
        weights = batch["weights"]
        return 5 * (loss * weights[asked]).sum() / weights.sum()


def sample_pairs(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, float]]:
    """A few of a scene's questions in other words: (question, answer, weight)."""
    accuracy_by_type = {kind: [] for kind in QUESTION_TYPES}
    for row, question, answer in generate_questions(scene, REWORDED):
        accuracy_by_type[row.question_type].append((question, answer, sample_weight(row.question_type, answer)))
    chosen = []
    for kind, pairs in accuracy_by_type.items():
        order = rng.permutation(len(pairs))[: PAIRS_A_KIND.get(kind, 1)]
        chosen += [pairs[i] for i in order]
    return chosen
