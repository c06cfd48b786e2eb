"""The second stage: captions and questions through the text model, on top of the trained tower."""

import numpy as np
import torch
from torch import Tensor, nn

from homework.clip import tokenize
from homework.clip_model import CLIP
from homework.nano_model import TuxNanoForConditionalGeneration
from homework.nano_vision import TuxNanoVisionConfig
from homework.packing import IGNORE, PromptTokens, collate, pack
from homework.questions import KINDS, ask, captions, training_weight
from homework.scene import Scene

from .base import make_config
from .dense import DenseHeads, dense_loss
from .vocabulary import SmallVocabulary, caption_texts
from .wording import REWORDED

# the dense stage's losses that reach the tokens
DENSE = ("ego", "total", "track", "count", "relation", "token", "side", "fovea_token", "fovea_side")
PAIRS_A_KIND = {"ego": 1, "total": 1, "track": 1, "relation": 3, "count": 3}


class TextStage(nn.Module):
    """The whole base with a small vocabulary, the tower's teaching heads, and a CLIP on both encoders."""

    def __init__(self, vision: TuxNanoVisionConfig, tokens: PromptTokens):
        super().__init__()
        self.tokens, self.vocabulary = tokens, SmallVocabulary(tokens)
        config = make_config(vision, len(self.vocabulary))
        # ids become rows of the small table, for the image token too
        config.image_token_id = int(self.vocabulary.row[config.image_token_id])
        config.text_config.pad_token_id = int(self.vocabulary.row[config.text_config.pad_token_id])
        self.model = TuxNanoForConditionalGeneration(config)
        self.heads = DenseHeads(vision)
        self.clip = CLIP(self.model.model.vision_model, self.model.model.text_model)
        for stages in (self.tower.stages, self.tower.fovea):
            stages.requires_grad_(False)
        self.captions = caption_texts()
        self.caption_index = {text: index for index, text in enumerate(self.captions)}
        encoded = tokenize(self.captions, tokens.tokenizer)
        self.caption_ids, self.caption_mask = self.vocabulary.row[encoded["input_ids"]], encoded["attention_mask"]
        self.log_odds = torch.zeros(len(self.captions))

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.model.model.vision_model

    def train(self, mode: bool = True) -> "TextStage":
        """As usual, but the convolutions' batch norms stay as the dense stage left them."""
        super().train(mode)
        self.tower.stages.eval()
        self.tower.fovea.eval()
        return self

    def losses(
        self, pixels: Tensor, targets: dict[str, Tensor], scenes: list[Scene], rng: np.random.Generator, whole: bool
    ):
        """Loss by name: questions (on whole views only), captions, and the dense stage's that reach the tokens.

        The dense stage's are left out where its heads are held still: they would teach nothing.
        """
        with torch.no_grad():
            view, fovea = self.tower.feature_maps(pixels)
        tokens, losses = self.tower.encode(view[-1], fovea[-1]), {}
        if any(parameter.requires_grad for parameter in self.heads.parameters()):
            dense = dense_loss(self.heads(view[-2], fovea[-2], tokens), targets)
            losses |= {name: 0.3 * dense[name] for name in DENSE}
        vision = self.clip.project_image(tokens)
        text = self.clip.encode_text(self.caption_ids, self.caption_mask)
        losses["captions"] = 0.5 * self.clip.loss(vision, text, self.truth(scenes), self.log_odds)
        if whole:
            losses["questions"] = self._question_loss(tokens, scenes, rng)
        return losses

    def truth(self, scenes: list[Scene]) -> Tensor:
        """[b, captions], 1 where a caption is true of a scene."""
        truth = torch.zeros(len(scenes), len(self.captions))
        for row, scene in enumerate(scenes):
            known = [self.caption_index[text] for text in captions(scene) if text in self.caption_index]
            truth[row, known] = 1
        return truth

    def _question_loss(self, tokens: Tensor, scenes: list[Scene], rng: np.random.Generator) -> Tensor:
        packed = [pack(self.tokens, sample_pairs(scene, rng)) for scene in scenes]
        batch = collate(packed, torch.empty(0), pad_id=2)
        rows = self.vocabulary.row[batch["input_ids"]]
        embedding = self.model.get_input_embeddings()
        merged = self.model.model.inputs_merger(rows, embedding(rows), self.model.model.connector(tokens))
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
    by_kind = {kind: [] for kind in KINDS}
    for row, question, answer in ask(scene, REWORDED):
        by_kind[row.kind].append((question, answer, training_weight(row.kind, answer)))
    chosen = []
    for kind, pairs in by_kind.items():
        order = rng.permutation(len(pairs))[: PAIRS_A_KIND.get(kind, 1)]
        chosen += [pairs[i] for i in order]
    return chosen
