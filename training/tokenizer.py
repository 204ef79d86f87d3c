"""The one small tokenizer of the mini family: byte-level BPE over the questions, replies and templates it will see.

    python -m training.tokenizer --out runs/mini/tokenizer

Digits stand alone, as in Qwen2's tokenizer, because the evaluator's number grammar works digit by digit. Any text can
be encoded (bytes are the alphabet); ordinary questions take about one token a word.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rea2seg.cli import DONE, Parser, natural, positive, run
from rea2seg.output import writable_folder
from rea2seg.synth.queries import questions
from training.batches import stream
from training.scenes import sample_scene

CONTROL = (
    *("<pad>", "<s>", "</s>", "<image>", "<im_start>", "<im_end>", "[SEG]"),
    *("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
)
"""Control tokens of both families: LISA's and InternVL's."""
TEMPLATES = (
    "Please segment the object. Which ones are these?",
    "\nQuestion: \nMask 1: \nMask 2: \nMask 3: \nMask 4: \nMask 5: \n",
    "Estimate the IoU of each mask. Think first, then estimate the IoU of each mask.\n",
    "Scores: [0.91, 0.10, 0.00, 0.33, 0.75]\nScores: [1.00]",
    "What is there? What is under each mask? mask 1: mask 2: mask 3: mask 4: mask 5: and part background",
    "a0 b1 c2 d3 e4 f5 g6 h7 i8 j9",
    # Each a token of its own, which `misread` of training.misreading relies on.
    "cup b3: exactly; cup b3: part; cup b3: no.",
)


def corpus(scenes: int, seed: int) -> Iterator[str]:
    """Questions and reasoning of fresh scenes, and the templates."""
    for index in range(scenes):
        rng = stream(seed, f"tokenizer/{index}")
        world, rendering = sample_scene(rng)
        for question in questions(rng, world, rendering, 8):
            yield from (question.text, question.reasoning)
        yield from TEMPLATES


def train(vocabulary: int, scenes: int, seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer with at most `vocabulary` entries, control tokens included."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(scenes, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[token for token in CONTROL if token not in ("<pad>", "<s>", "</s>")],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _answer(arguments))


def _answer(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m training.tokenizer", description="Train the tokenizer of the mini family.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--vocabulary", type=positive, default=640, help="entries at most (default: 640)")
    parser.add_argument("--scenes", type=positive, default=2000, help="whose questions are read (default: 2000)")
    parser.add_argument("--seed", type=natural, default=0, help="(default: 0)")
    options = parser.parse_args(arguments)
    train(options.vocabulary, options.scenes, options.seed).save_pretrained(writable_folder(options.out))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
