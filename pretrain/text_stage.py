"""Text stage: train text model and connector on captions and questions, with the vision encoder frozen.

In most real views the numbers of karts give away on which side a kart is, so a text model trained on views alone never
learns to attend to the token of the kart that a question names. Hence the synthetic scenes, encoded as ideal connector
inputs: in them karts are many and stand anywhere.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homework.labels import questions
from homework.labels.scene import VIEW_SIZE, Kart, Scene
from homework.models.clip import CLIP, tokenize
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.model import TuxNano
from homework.training.packing import IGNORE_INDEX, collate, pack

from .assemble import init_weights, make_config
from .compact_vocab import CompactVocabulary, caption_texts
from .dense_heads import DenseHeads, copy_heads_to_connector
from .paraphrases import PARAPHRASED_QUESTIONS
from .targets import KART_ID, KARTS, MAX_COUNT, TRACKS, image_targets

QUESTIONS_PER_TYPE = {"ego": 1, "total": 1, "track": 1, "relation": 4, "count": 2}  # per view
SYNTHETIC_BATCH_SIZE = 8  # scenes per step: the number of steps matters here, not the size of a batch
MAX_KARTS = 8  # per scene
BOX_SIDE_RANGE_PX = 6, 40
IDEAL_LOGIT = 8.0  # of a prediction that is certain
LISTING_WEIGHT = 3.0  # loss weight of a list of all karts; that of a question is about 1
FIRST_LOW_FREQ_DIM = 6  # pairs of a head's dimensions from here on rotate little over the length of a prompt
NAME_WEIGHT = 5.0  # regression weight of names and kart tokens; that of all other tokens, which match nothing, is 1
MATCH_LOGIT = 12.0  # attention logit of a name and its kart's token

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
        self.clip = CLIP(self.model.vision_encoder, self.model.language_model, self.model.connector.prediction_heads)
        for part in (self.model.vision_encoder, self.heads, self.model.connector.prediction_heads):
            part.requires_grad_(False)
        self.captions = caption_texts()
        encoded = tokenize(self.captions, tokens.tokenizer)
        self.caption_ids, self.caption_mask = self.vocabulary.row[encoded["input_ids"]], encoded["attention_mask"]
        self.prior_logits = torch.zeros(len(self.captions))
        self.perturb_predictions = True  # in training mode

    def load_vision(self, encoder: nn.Module, heads: DenseHeads) -> None:
        """Copy a dense stage's encoder and heads, the latter into the connector too."""
        self.model.vision_encoder.load_state_dict(encoder.state_dict())
        self.model.vision_encoder.to(memory_format=torch.channels_last)
        self.heads.load_state_dict(heads.state_dict())
        copy_heads_to_connector(self.model.connector.prediction_heads, heads)

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

    def losses(self, pixels: Tensor, scenes: list[Scene], rng: np.random.Generator, whole: bool) -> dict[str, Tensor]:
        """Compute the losses of captions, of questions (if `whole` views are shown), and of synthetic scenes."""
        with torch.no_grad():
            tokens = self.model.vision_encoder(pixels).last_hidden_state
        image_features = self.clip.project_image(self.clip.pool_vision_tokens(tokens))
        text_features = self.clip.encode_text(self.caption_ids, self.caption_mask)
        targets = self.caption_targets(scenes)
        losses = {"captions": 0.5 * self.clip.loss(image_features, text_features, targets, self.prior_logits)}
        if whole:
            pairs = [sample_pairs(scene, rng) for scene in scenes]
            losses["questions"] = self._question_loss(self.model.connector(tokens), pairs)
        return losses | self.synthetic_losses(rng)

    def synthetic_losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Compute the loss of questions about synthetic scenes."""
        scenes = sample_scenes(rng, SYNTHETIC_BATCH_SIZE)
        pairs = [[*sample_pairs(scene, rng), *list_all_karts_qa(scene, rng)] for scene in scenes]
        image_features = self.model.connector.embed_predictions(ideal_predictions(scenes, rng))
        return {"synthetic": self._question_loss(image_features, pairs)}

    def caption_targets(self, scenes: list[Scene]) -> Tensor:
        """Build the matrix [b, captions] that is 1 where a caption is true of a scene."""
        true = [set(questions.captions(scene)) for scene in scenes]
        return torch.tensor([[float(caption in texts) for caption in self.captions] for texts in true])

    def _question_loss(self, image_features: Tensor, pairs: list[list[QAPair]]) -> Tensor:
        """Compute the answers' weighted loss, given each view's connector output [b, image_seq_len, d]."""
        batch = collate([pack(self.tokens, view_pairs) for view_pairs in pairs], torch.empty(0), pad_id=2)
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
    pairs_by_type = {kind: [] for kind in questions.QUESTION_TYPES}
    for row, question, answer in questions.generate_questions(scene, PARAPHRASED_QUESTIONS):
        pairs_by_type[row.question_type].append((question, answer, questions.sample_weight(row.question_type, answer)))
    orders = {kind: rng.permutation(len(pairs)) for kind, pairs in pairs_by_type.items()}
    return [pairs_by_type[kind][i] for kind, order in orders.items() for i in order[: QUESTIONS_PER_TYPE.get(kind, 1)]]


def sample_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Sample scenes of 1 to `MAX_KARTS` distinct karts, anywhere in the view."""
    scenes = []
    for _ in range(count):
        karts = []
        for number, name in enumerate(rng.permutation(KARTS)[: rng.integers(1, MAX_KARTS + 1)]):
            width, height = rng.integers(*BOX_SIDE_RANGE_PX, size=2)
            x, y = rng.integers((0, 0), (VIEW_SIZE[0] - width, VIEW_SIZE[1] - height))
            karts.append(Kart(number, str(name), (int(x), int(y), int(x + width), int(y + height))))
        scenes.append(Scene(str(rng.choice(TRACKS)), tuple(karts)))
    return scenes


def list_all_karts_qa(scene: Scene, rng: np.random.Generator) -> list[QAPair]:
    """Ask for the sides of all other karts, in random order: [(question, answer, weight)], or [] without other karts.

    Each side follows its kart's name, so that the text model learns to attend from a name to the kart's token.
    """
    if not scene.others:
        return []
    others = [scene.others[i] for i in rng.permutation(len(scene.others))]
    sides = questions.front_or_back, questions.left_or_right
    words = [" ".join([kart.name, *(side(scene, kart) for side in sides)]) for kart in others]
    return [("Tell the place of the karts.", " ".join(words), LISTING_WEIGHT)]


def ideal_predictions(scenes: list[Scene], rng: np.random.Generator) -> dict[str, Tensor]:
    """Build the output of certain and correct `PredictionHeads`; that for absent karts is random."""
    targets = {name: torch.from_numpy(values) for name, values in image_targets(scenes).items()}
    num_classes = {"ego": len(KARTS), "total": MAX_COUNT + 1, "track": len(TRACKS), "count": MAX_COUNT + 1}
    logits = {name: IDEAL_LOGIT * F.one_hot(targets[name], n).float() for name, n in num_classes.items()}
    relation = torch.from_numpy(rng.uniform(-IDEAL_LOGIT, IDEAL_LOGIT, targets["relation"].shape)).float()
    known = IDEAL_LOGIT * (2 * targets["relation"] - 1).float()
    logits["relation"] = torch.where(targets["relation"] >= 0, known, relation)
    place = torch.from_numpy(rng.uniform(-1, 1, (len(scenes), len(KARTS), 2))).float()
    width, height = VIEW_SIZE
    for row, scene in enumerate(scenes):
        for kart in scene.karts:
            x, y = kart.center
            place[row, KART_ID[kart.name]] = torch.tensor([y - height / 2, x - width / 2]) / (width / 2)
    return logits | {"place": place}


@torch.no_grad()
def init_name_matching_head(stage: TextStage, seed: int = 0) -> None:
    """Set the connector's slot embeddings and the first head of the first layer, by least squares; freeze that head.

    The head matches a kart's name with the kart's token. To answer about a named kart, the text model has to find that
    token, move its content to the name, and from there to the answer. None of these steps pays off alone: after 500
    batches of 8 synthetic scenes the model still guessed sides from the numbers of karts (81 % correct); with the first
    step initialised here it had 99.3 %.
    """
    text_model, connector, row = stage.model.language_model, stage.model.connector, stage.vocabulary.row
    embedding = text_model.embed_tokens.weight
    names = [row[stage.tokens.tokenizer(f" {kart}", add_special_tokens=False)["input_ids"]] for kart in KARTS]
    for slot, name in zip(connector.slot_embedding.weight, names, strict=False):
        word = embedding[name].sum(0)
        slot.copy_(word / word.std())

    attention, norm = text_model.layers[0].self_attn, text_model.layers[0].input_layernorm
    size = attention.head_dim
    dims = torch.arange(FIRST_LOW_FREQ_DIM, size // 2)
    dims = torch.cat([dims, dims + size // 2])
    codes = torch.randn(len(KARTS), len(dims), generator=torch.Generator().manual_seed(seed))
    codes /= codes.norm(dim=1, keepdim=True)
    # a token's query is the mean code of the karts whose name it is a part of, and 0 for all other tokens
    queries, num_names = torch.zeros(len(embedding), len(dims)), torch.zeros(len(embedding), 1)
    for name, code in zip(names, codes, strict=True):
        queries[name] += code
        num_names[name] += 1
    queries /= num_names.clamp(min=1)
    tokens, slots = norm(embedding), norm(connector.norm(connector.slot_embedding.weight))
    keys = torch.zeros(len(slots), len(dims))
    keys[: len(KARTS)] = codes
    query_weight = _ridge_regression(tokens, queries, torch.where(num_names > 0, NAME_WEIGHT, 1.0))
    weights = torch.cat([torch.full((len(slots), 1), NAME_WEIGHT), torch.ones(len(tokens), 1)])
    key_weight = _ridge_regression(torch.cat([slots, tokens]), torch.cat([keys, torch.zeros_like(queries)]), weights)
    for projection, solution in ((attention.q_proj, query_weight), (attention.k_proj, key_weight)):
        projection.weight[:size] = 0
        projection.weight[dims] = (MATCH_LOGIT * size**0.5) ** 0.5 * solution
        projection.weight.register_hook(lambda gradient: torch.cat([0 * gradient[:size], gradient[size:]]))


def _ridge_regression(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Solve for w [out, in] with x @ w.T near y; x [n, in], y [n, out], weights [n, 1]."""
    x, y = weights * x, weights * y
    return torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ y).T
