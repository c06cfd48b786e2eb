"""Many questions on one image as one sequence: what carries loss, what sees what."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from homework.models.loading import backbone
from homework.models.prompts import chat_turn
from homework.models.tux_nano.connector import PredictionConnector
from homework.training.packing import (
    IGNORE_INDEX,
    PackedTrainingModule,
    PackedVQADataset,
    collate,
    collate_views,
    pack,
)
from tests.tiny_models import is_tux_nano, reference_logits

PAIRS = [
    ("What kart is the ego car?", "sara_the_racer", 1.0),
    ("How many karts are there in the scenario?", "10", 0.5),
    ("Where is tux relative to the ego car?", "front and left", 2.0),
]
OTHER_PAIRS = [("What track is this?", "gran_paradiso_island", 1.5)]


def whole_turn(vlm, question: str, answer: str) -> str:
    """Write question and answer as one chat; for SmolVLM by the processor's own template."""
    if is_tux_nano(vlm):
        return f"{chat_turn(vlm.processor, question)} {answer}<end_of_utterance>"
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return vlm.processor.apply_chat_template(messages).removesuffix("\n")


def packed_batch(vlm, views, lists) -> dict:
    images = [[Image.open(path)] for path, _ in zip(views, lists, strict=False)]
    pixels = vlm.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return collate([pack(vlm.tokens, pairs) for pairs in lists], pixels, vlm.processor.tokenizer.pad_token_id)


def separate_losses(vlm, views, lists) -> torch.Tensor:
    """Compute the loss with one question per sequence: the weighted sum over pairs, per view."""
    total = 0.0
    for path, pairs in zip(views, lists, strict=False):
        for question, answer, weight in pairs:
            answer_ids = vlm.tokens.answer(answer)
            logits = reference_logits(vlm, path, vlm.tokens.prefix + vlm.tokens.question(question) + answer_ids)
            loss = F.cross_entropy(logits[-len(answer_ids) - 1 : -1], torch.tensor(answer_ids))
            total = total + weight * loss
    return total / len(lists)


def grads(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("question, answer, _", PAIRS + OTHER_PAIRS)
def test_parts_are_the_whole_chat(vlm, views, question, answer, _):
    """Training and answering see exactly the ids that the processor makes of the whole conversation."""
    inputs = vlm.processor(text=whole_turn(vlm, question, answer), images=[Image.open(views[0])])
    assert vlm.tokens.prefix + vlm.tokens.question(question) + vlm.tokens.answer(answer) == inputs["input_ids"][0]
    assert vlm.tokens.decode(vlm.tokens.answer(answer)) == answer


def test_only_answers_and_their_end_carry_loss(vlm, views):
    """Token by token: a label is the next token of an answer or its end; prompt, image and padding have none."""
    batch = packed_batch(vlm, views, [PAIRS, OTHER_PAIRS])
    tokenizer, tokens = vlm.processor.tokenizer, vlm.tokens
    for row, pairs in enumerate([PAIRS, OTHER_PAIRS]):
        at = len(tokens.prefix)
        labelled = {}
        for question, answer, weight in pairs:
            asked, answered = tokens.question(question), tokens.answer(answer)
            assert tokenizer.decode(asked).endswith(f"{question}<end_of_utterance>\nAssistant:")
            assert tokenizer.decode(answered) == f" {answer}<end_of_utterance>"
            place = at + len(asked) - 1  # the last token of the prompt predicts the answer's first
            for offset, token in enumerate(answered):
                labelled[place + offset] = (token, weight / len(answered))
            at = place + len(answered)
        for place in range(batch["input_ids"].shape[1]):
            label, weight = batch["labels"][row, place].item(), batch["weights"][row, place].item()
            if place not in labelled:
                assert (label, weight) == (IGNORE_INDEX, 0.0), f"position {place} carries loss"
                continue
            expected, share = labelled[place]
            assert label == expected and weight == pytest.approx(share)
            if label != tokens.end:  # the end is predicted and never read
                assert batch["input_ids"][row, place + 1] == label
    decoded = tokenizer.decode(batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist())
    assert decoded == "".join(f" {answer}<end_of_utterance>" for _, answer, _ in PAIRS)


def test_packed_trains_as_separate_samples_do(adapted, views):
    """Loss and every gradient of a packed batch are those of one question a sample, computed one by one."""
    lists = [PAIRS, OTHER_PAIRS]
    adapted.model.train()
    for module in adapted.model.modules():
        if isinstance(module, PredictionConnector):
            module.eval()  # its perturbations differ with each pass
    packed = PackedTrainingModule(adapted.model)(**packed_batch(adapted, views, lists))["loss"]
    packed.backward()
    packed_grads = grads(adapted.model)
    separate = separate_losses(adapted, views, lists)
    separate.backward()
    separate_grads = grads(adapted.model)
    assert packed.item() == pytest.approx(separate.item(), rel=1e-4)
    assert packed_grads.keys() == separate_grads.keys() and len(packed_grads) > 20
    assert any("vision" in name for name in packed_grads)
    for name, expected in separate_grads.items():
        assert expected.norm() > 0, name
        assert (packed_grads[name] - expected).norm() <= 1e-4 * expected.norm(), name


def test_branches_do_not_see_each_other(vlm, views):
    """Another answer to one pair leaves what the model says to the others as it was."""

    def hidden(answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        view = pack(vlm.tokens, [PAIRS[0], (PAIRS[1][0], answer, 1.0), PAIRS[2]])
        batch = collate([view], vlm.pixel_values(views[:1]), 2)
        names = ("input_ids", "position_ids", "attention_mask", "pixel_values")
        with torch.inference_mode():
            output = backbone(vlm.model)(**{name: batch[name] for name in names}, use_cache=False)
        return output.last_hidden_state[0], torch.tensor(view.segment_ids)

    (before, branch), (after, _) = hidden("10"), hidden("99")
    for number in (0, 1, 3):
        assert torch.allclose(before[branch == number], after[branch == number], atol=1e-5)
    assert not torch.allclose(before[branch == 2], after[branch == 2], atol=1e-2)


def test_order_of_pairs_does_not_matter(adapted, views):
    """The loss of a view is the same in whatever order its questions stand."""
    module = PackedTrainingModule(adapted.model)
    losses = [module(**packed_batch(adapted, views, [pairs]))["loss"].item() for pairs in (PAIRS, PAIRS[::-1])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_question_types_weigh_the_same(tiny_data, vlm):
    """The five question types have the same share in the loss, however many questions there are of each."""
    from homework.labels.questions import classify_question
    from homework.labels.rows import VQADataset

    dataset = PackedVQADataset(VQADataset("train", tiny_data))
    shares = {}
    for index in range(len(dataset)):
        for question, _, weight in dataset[index][1]:
            shares[classify_question(question)] = shares.get(classify_question(question), 0) + weight
    assert len(shares) == 5 and max(shares.values()) == pytest.approx(min(shares.values()))
    items = [dataset[i] for i in range(len(dataset))]
    batch = collate_views(items, vlm.processor, vlm.tokens)
    assert batch["weights"].sum().item() == pytest.approx(sum(shares.values()))
    assert torch.equal(batch["weights"] > 0, batch["labels"] != IGNORE_INDEX)
