"""What the evaluator is asked, as data, and the token ids it becomes; training and inference build the same ids here.

The paper shows its prompts only in figures, which we could not recover: the wording and the order are ours. The image
and the question come first, so that all groups of a query share that prefix; the masks of a group and a short
instruction follow. Every piece is encoded apart and control tokens are placed by id, so no piece can merge with, or
pose as, its neighbour.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rea2seg.text import control_id, cut, encode_untrusted, refuse_undeclared


@dataclass(frozen=True)
class EvaluatorTemplate:
    """The pieces of a prompt in the chat format of InternVL3; names in `controls` are control tokens where they occur.

    Order: user, image, question, asked, then per mask label, mask and after_mask, then one of the two instructions and
    assistant. `{number}` in the label counts the masks of a group from 1.
    """

    user: str = "<|im_start|>user\nImage: "
    question: str = "\nQuestion: "
    asked: str = "\nCandidate masks of the image, white where the mask is:\n"
    label: str = "Mask {number}: "
    after_mask: str = "\n"
    instruction: str = (
        "For each mask, estimate its IoU with the region that answers the question. "
        "Write only 'Scores: [...]' with one number from 0.00 to 1.00 for each mask, in order."
    )
    reasoned: str = (
        "For each mask, estimate its IoU with the region that answers the question. "
        "First reason step by step about which region that is and how well each mask fits it. "
        "Then write 'Scores: [...]' on a new line, with one number from 0.00 to 1.00 for each mask, in order."
    )
    assistant: str = "<|im_end|>\n<|im_start|>assistant\n"
    end: str = "<|im_end|>"
    image_open: str = "<img>"
    image_slot: str = "<IMG_CONTEXT>"
    image_close: str = "</img>"
    controls: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


SHORT = EvaluatorTemplate(
    user="<|im_start|>",
    question="",
    asked="\n",
    label="{number}",
    after_mask="",
    instruction="",
    reasoned="?",
    assistant="<|im_end|>",
)
"""A prompt of few tokens for a small model that was trained on it and needs no words: the mini family's."""


def prefix_ids(
    tokenizer: PreTrainedTokenizerBase, template: EvaluatorTemplate, question: str, image_tokens: int
) -> list[int]:
    """The image and the question: what all groups of a query share. The question cannot speak control tokens."""
    return [
        *piece_ids(tokenizer, template, template.user),
        *_image_ids(tokenizer, template, image_tokens),
        *piece_ids(tokenizer, template, template.question),
        *encode_untrusted(tokenizer, question),
        *piece_ids(tokenizer, template, template.asked),
    ]


def suffix_ids(
    tokenizer: PreTrainedTokenizerBase, template: EvaluatorTemplate, masks: int, mask_tokens: int, reasoning: bool
) -> list[int]:
    """The masks of one group, the instruction and the start of the reply."""
    image = _image_ids(tokenizer, template, mask_tokens)
    after = piece_ids(tokenizer, template, template.after_mask)
    ids: list[int] = []
    for number in range(1, masks + 1):
        ids += [*piece_ids(tokenizer, template, template.label.replace("{number}", str(number))), *image, *after]
    ids += piece_ids(tokenizer, template, template.reasoned if reasoning else template.instruction)
    return ids + piece_ids(tokenizer, template, template.assistant)


def piece_ids(tokenizer: PreTrainedTokenizerBase, template: EvaluatorTemplate, piece: str) -> list[int]:
    """The ids of one piece of the template: control tokens by name, the rest as plain text."""
    ids: list[int] = []
    for part in cut(piece, template.controls):
        if part in template.controls:
            ids.append(control_id(tokenizer, part))
        else:
            refuse_undeclared(tokenizer, part)
            ids += encode_untrusted(tokenizer, part)
    return ids


def _image_ids(tokenizer: PreTrainedTokenizerBase, template: EvaluatorTemplate, tokens: int) -> list[int]:
    slot = control_id(tokenizer, template.image_slot)
    opened = piece_ids(tokenizer, template, template.image_open)
    return [*opened, *[slot] * tokens, *piece_ids(tokenizer, template, template.image_close)]
