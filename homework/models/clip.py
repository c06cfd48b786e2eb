"""CLIP from a VLM's two encoders: what an image shows, projections, a learned temperature and bias."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.errors import InputError, first_line
from ..utils.io import atomic_write
from .tux_nano.connector import PredictionHeads

ADDITIONAL_WEIGHTS = "additional_weights.pt"
DIM = 128
POOL_HEAD_DIM = 32
SMOOTHING = 0.1  # of what is true (label smoothing, arXiv:1512.00567)
BASE_MODEL_PREFIXES = ("vision_encoder.", "text_encoder.", "recogniser.")


def smooth_labels(truth: Tensor) -> Tensor:
    """Labels from `SMOOTHING` / 2 to 1 - `SMOOTHING` / 2 instead of 0 to 1."""
    return (1 - SMOOTHING) * truth + SMOOTHING / 2


def class_prior_logits(truth: Tensor, kinds: Sequence[str]) -> Tensor:
    """The log odds of a text of each kind before the image is seen, as labels are smoothed, for each text: [texts].

    Args:
        truth: [views, texts], 1 where a text is true of a view.
        kinds: of each text.
    """
    shares = smooth_labels(truth).mean(0)
    of_kind = {kind: shares[[other == kind for other in kinds]].mean() for kind in set(kinds)}
    return torch.stack([of_kind[kind] for kind in kinds]).logit()


class AttentionPool(nn.Module):
    """One learned query a head picks what it needs of the tokens. [b, s, d] -> [b, d]."""

    def __init__(self, dim: int):
        super().__init__()
        self.heads = dim // POOL_HEAD_DIM
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(self.heads, POOL_HEAD_DIM) * dim**-0.5)
        self.key_value = nn.Linear(dim, 2 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        b, s, d = tokens.shape
        # [b, s, 2d] -> 2 x [b, heads, s, 32]
        key, value = self.key_value(self.norm(tokens)).view(b, s, 2, self.heads, POOL_HEAD_DIM).permute(2, 0, 3, 1, 4)
        query = self.query[None, :, None].expand(b, -1, -1, -1).to(tokens.dtype)  # [b, heads, 1, 32]
        return F.scaled_dot_product_attention(query, key, value).reshape(b, d)


class CLIP(nn.Module):
    """Scores images against texts.

    Args:
        vision_encoder, text_encoder: `model.model.vision_model` and `model.model.text_model` of a VLM.
        recogniser: of a VLM whose connector has one: what its vision encoder recognises is read then. Else its tokens
            are pooled by attention.
        dim: width of the common space.
    """

    def __init__(
        self,
        vision_encoder: nn.Module,
        text_encoder: nn.Module,
        recogniser: PredictionHeads | None = None,
        dim: int = DIM,
    ):
        super().__init__()
        self.vision_encoder, self.text_encoder, self.recogniser = vision_encoder, text_encoder, recogniser
        width = recogniser.num_evidence if recogniser else vision_encoder.config.hidden_size
        self.vision_pool = None if recogniser else AttentionPool(width)
        self.vision_projection = nn.Linear(width, dim)
        if recogniser:
            nn.init.orthogonal_(self.vision_projection.weight)  # so that one fact does not look like another
        self.text_projection = nn.Linear(text_encoder.config.hidden_size, dim)
        # SigLIP's start (arXiv:2303.15343), but for the bias: the log odds of each text stand in its place
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(0.0))

    @property
    def model(self) -> "CLIP":
        """Itself: a grader asks for the `.model` of what it is given, which may be a PeftModel of this."""
        return self

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, h, w] of any float type -> unit vectors [b, dim]."""
        return self.project_image(self.look(pixel_values))

    def look(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, h, w] of any float type -> what the images show, [b, width]."""
        pixel_values = pixel_values.to(next(self.vision_encoder.parameters()).dtype)
        return self.pool_vision_tokens(self.vision_encoder(pixel_values).last_hidden_state)

    @property
    def vision_is_trainable(self) -> bool:
        """Whether what `look` gives changes in training."""
        parts = (self.vision_encoder, self.recogniser or self.vision_pool)
        return any(weight.requires_grad for part in parts for weight in part.parameters())

    def pool_vision_tokens(self, tokens: Tensor) -> Tensor:
        """The vision encoder's tokens, [b, s, d] or [b, looks, s, d] -> what the images show, [b, width]."""
        dtype = self.vision_projection.weight.dtype
        if self.recogniser:
            return self.recogniser.evidence(tokens).to(dtype)
        return self.vision_pool(tokens.flatten(1, -2).to(dtype))

    def project_image(self, shown: Tensor) -> Tensor:
        """What images show, [b, width] -> unit vectors [b, dim]."""
        return F.normalize(self.vision_projection(shown), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[n, s] padded on either side -> unit vectors [n, dim], read at each text's last token."""
        # padding on the left would shift the positions: count them by the mask
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        hidden = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (attention_mask * place).argmax(1)  # [n]
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), last].to(self.text_projection.weight.dtype)
        return F.normalize(self.text_projection(hidden), dim=-1)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(vision features [b, dim], text features [n, dim], logit scale)."""
        vision, text = self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask)
        return vision, text, self.logit_scale.exp()

    def loss(self, vision: Tensor, text: Tensor, truth: Tensor, prior_logits: Tensor) -> Tensor:
        """Sigmoid loss of each image against each text: nothing true is ever called wrong.

        How often texts of a kind are true at all is added here and left out when candidates are compared, so that what
        is left is what the image says (logit adjustment, arXiv:2007.07314): of five candidates one is true, and one
        about a certain kart's side as likely as one about the number of karts. Within a kind, what is seldom true stays
        less likely: few views show nine karts.

        Labels are smoothed, so that what is false is not to be said with ever more certainty: of other races than those
        of the training, where a kart is now and then not recognised, one false caption would be by chance much more
        certainly false than another, and than a true one.

        Args:
            vision, text: [b, dim], [n, dim].
            truth: [b, n], 1 where the text is true of the image.
            log_odds: [n], see `class_prior_logits`.

        Returns:
            the mean over images of the sum over texts.
        """
        logits = self.logit_scale.exp() * vision @ text.T + self.logit_bias + prior_logits
        return F.binary_cross_entropy_with_logits(logits, smooth_labels(truth), reduction="none").sum(1).mean()

    def additional_weights(self) -> dict[str, Tensor]:
        """All that is not the base's: with another base's recogniser an old checkpoint would load, and be wrong."""
        return {k: v.detach().cpu() for k, v in self.state_dict().items() if not k.startswith(BASE_MODEL_PREFIXES)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `additional_weights.pt`."""
        with atomic_write(Path(folder) / ADDITIONAL_WEIGHTS) as temporary:
            torch.save(self.additional_weights(), temporary)

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
                raise ValueError("other names of weights than this CLIP has")
            self.load_state_dict(weights, strict=False)
        except FileNotFoundError:
            raise InputError(file, "no such file", remedy) from None
        except Exception as error:  # torch, pickle and zipfile each raise their own
            raise InputError(file, f"not this CLIP's weights ({first_line(error)})", remedy) from None
