"""CLIP from a VLM's two encoders: image features, projections, a learned temperature and bias."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.errors import InputError, first_line
from ..utils.io import atomic_write
from .loading import unwrap
from .lora_weights import ADDITIONAL_WEIGHTS
from .tux_nano.connector import PredictionHeads
from .tux_nano.model import TuxNano

NUM_THREADS = torch.get_num_threads()
EMBEDDING_DIM = 128
POOL_HEAD_DIM = 32
LABEL_SMOOTHING = 0.1  # arXiv:1512.00567
BASE_MODEL_PREFIXES = ("vision_encoder.", "text_encoder.", "prediction_heads.")


def smooth_labels(targets: Tensor) -> Tensor:
    """Map targets 0 and 1 to `LABEL_SMOOTHING` / 2 and 1 - `LABEL_SMOOTHING` / 2."""
    return (1 - LABEL_SMOOTHING) * targets + LABEL_SMOOTHING / 2


def class_prior_logits(shares: Tensor, caption_types: Sequence[str]) -> Tensor:
    """Return each caption's prior logit: log-odds that a caption of its type is true. Shape [num_captions].

    Args:
        shares: of images that each caption is true of, [num_captions]; they are smoothed as the targets in training.
        caption_types: of each caption.
    """
    shares = smooth_labels(shares)
    share_of_type = {
        one: shares[[other == one for other in caption_types]].mean() for one in dict.fromkeys(caption_types)
    }
    return torch.stack([share_of_type[one] for one in caption_types]).logit()


def tokenize(texts: Sequence[str], tokenizer) -> dict[str, Tensor]:
    """Return input_ids and attention_mask [n, s] of texts, each with the end token, as the grader makes them."""
    encoded = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def set_threads(batch_size: int) -> None:
    """Compute single images on one thread from now on, and batches on as many as torch had at the import.

    A single image is many small operators. Between them, and in whatever the caller computes between two images,
    OpenMP's threads wait by spinning: beside other busy processes that takes several times as long as one thread.
    Setting the number back after each image would let them spin again.
    """
    torch.set_num_threads(1 if batch_size == 1 else NUM_THREADS)


class AttentionPool(nn.Module):
    """Pool tokens by one learned query per head. [b, s, d] -> [b, d]."""

    def __init__(self, dim: int):
        super().__init__()
        self.num_heads = dim // POOL_HEAD_DIM
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(self.num_heads, POOL_HEAD_DIM) * dim**-0.5)
        self.key_value = nn.Linear(dim, 2 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        b, s, d = tokens.shape
        # [b, s, 2d] -> 2 x [b, heads, s, 32]
        key_value = self.key_value(self.norm(tokens)).view(b, s, 2, self.num_heads, POOL_HEAD_DIM)
        key, value = key_value.permute(2, 0, 3, 1, 4)
        query = self.query[None, :, None].expand(b, -1, -1, -1).to(tokens.dtype)  # [b, heads, 1, 32]
        return F.scaled_dot_product_attention(query, key, value).reshape(b, d)


class CLIP(nn.Module):
    """Embed images and texts in one space, where an image is near its true captions.

    Args:
        vision_encoder, text_encoder: of a VLM.
        prediction_heads: TuxNano's: an image is embedded by the log-odds of what they predict. Without them, the vision
            encoder's tokens are pooled by attention.
        dim: width of the common space.
    """

    def __init__(
        self,
        vision_encoder: nn.Module,
        text_encoder: nn.Module,
        prediction_heads: PredictionHeads | None = None,
        dim: int = EMBEDDING_DIM,
    ):
        super().__init__()
        self.vision_encoder, self.text_encoder = vision_encoder, text_encoder
        self.prediction_heads = prediction_heads
        width = prediction_heads.num_captions if prediction_heads else vision_encoder.config.hidden_size
        self.vision_pool = None if prediction_heads else AttentionPool(width)
        self.vision_projection = nn.Linear(width, dim)
        if prediction_heads:
            nn.init.orthogonal_(self.vision_projection.weight)  # so that captions start out dissimilar
        self.text_projection = nn.Linear(text_encoder.config.hidden_size, dim)
        # SigLIP's initial values (arXiv:2303.15343), except the bias: the captions' prior logits take its place
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(0.0))

    @classmethod
    def from_vlm(cls, vlm: nn.Module) -> "CLIP":
        """Build a new CLIP on a VLM's encoders, on the VLM's device; its own weights are in float32."""
        base = unwrap(vlm)
        if isinstance(base, TuxNano):
            parts = base.vision_encoder, base.language_model, base.connector.prediction_heads
        else:
            parts = base.model.vision_model, base.model.text_model
        return cls(*parts).to(base.device)

    @property
    def model(self) -> "CLIP":
        """Itself: a grader takes the `.model` of what `load_clip` returns, which may be a PeftModel of this."""
        return self

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Embed images [b, 3, h, w] of any float dtype as unit vectors [b, dim]."""
        return self.project_image(self.encode_vision_features(pixel_values))

    def encode_vision_features(self, pixel_values: Tensor) -> Tensor:
        """Encode images [b, 3, h, w] of any float dtype up to the projection, [b, width]."""
        pixel_values = pixel_values.to(next(self.vision_encoder.parameters()).dtype)
        return self.pool_vision_tokens(self.vision_encoder(pixel_values).last_hidden_state)

    @property
    def vision_is_trainable(self) -> bool:
        """Whether training changes the output of `encode_vision_features`."""
        parts = (self.vision_encoder, self.prediction_heads or self.vision_pool)
        return any(weight.requires_grad for part in parts for weight in part.parameters())

    def pool_vision_tokens(self, tokens: Tensor) -> Tensor:
        """Turn the vision encoder's tokens, [b, s, d] or [b, passes, s, d], into features [b, width]."""
        dtype = self.vision_projection.weight.dtype
        if self.prediction_heads:
            return self.prediction_heads.caption_log_odds(tokens).to(dtype)
        return self.vision_pool(tokens.flatten(1, -2).to(dtype))

    def project_image(self, features: Tensor) -> Tensor:
        """Project features [b, width] to unit vectors [b, dim]."""
        return F.normalize(self.vision_projection(features), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts [n, s], padded on either side, as unit vectors [n, dim] by the state of their last token."""
        # padding on the left would shift the positions: count them by the mask
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        hidden_states = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        last = (attention_mask * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(1)  # [n]
        hidden_states = hidden_states[torch.arange(len(last), device=last.device), last]
        return F.normalize(self.text_projection(hidden_states.to(self.text_projection.weight.dtype)), dim=-1)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return image features [b, dim], text features [n, dim] and the logit scale."""
        set_threads(len(pixel_values))  # graders give one image per call
        return self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask), self.logit_scale.exp()

    def loss(
        self,
        image_features: Tensor,
        text_features: Tensor,
        targets: Tensor,
        prior_logits: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Compute the sigmoid loss of each image against each text, without false negatives.

        The captions' prior logits are added here and left out when candidates are compared, so that only what the
        image says remains (logit adjustment, arXiv:2007.07314): one of five candidates is true, and one about a
        certain kart's side is as likely as one about the number of karts. Within a type, rare captions stay less
        likely: few views show nine karts.

        Labels are smoothed, so that false captions are not pushed away ever further. On unseen races, where a kart is
        sometimes not recognised, one false caption would by chance be far more certainly false than another, and than a
        true one.

        Args:
            image_features, text_features: [b, dim], [n, dim].
            targets: [b, n], 1 where the text is true of the image.
            prior_logits: [n], see `class_prior_logits`.
            weights: of the texts in the sum, [n]; by default 1.

        Returns:
            the mean over images of the weighted sum over texts.
        """
        logits = self.logit_scale.exp() * image_features @ text_features.T + self.logit_bias + prior_logits
        losses = F.binary_cross_entropy_with_logits(logits, smooth_labels(targets), weights, reduction="none")
        return losses.sum(1).mean()

    def additional_weights(self) -> dict[str, Tensor]:
        """Return the weights that are not the base's: with another base's heads an old checkpoint would be wrong."""
        return {k: v.detach().cpu() for k, v in self.state_dict().items() if not k.startswith(BASE_MODEL_PREFIXES)}

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `additional_weights.pt`, in `dtype`."""
        with atomic_write(Path(folder) / ADDITIONAL_WEIGHTS) as temporary:
            torch.save({name: weight.to(dtype) for name, weight in self.additional_weights().items()}, temporary)

    def load_pretrained(self, folder: str | Path) -> None:
        """Read `additional_weights.pt`; no code in it is run.

        Raises:
            InputError: missing, broken, or of another base.
        """
        file, remedy = Path(folder) / ADDITIONAL_WEIGHTS, "train CLIP again on this base"
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            expected = self.additional_weights()
            if not isinstance(weights, dict) or weights.keys() != expected.keys():
                raise ValueError("its weights have other names than this CLIP's")
            self.load_state_dict(weights, strict=False)
        except FileNotFoundError:
            raise InputError(file, "no such file", remedy) from None
        except Exception as error:  # torch, pickle and zipfile each raise their own
            raise InputError(file, f"not this CLIP's weights ({first_line(error)})", remedy) from None
