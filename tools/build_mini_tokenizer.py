"""Rebuilds the mini tokenizer: byte-level BPE on LIBERO's instructions, with Qwen's special tokens.

``python -m tools.build_mini_tokenizer`` reads ``mini_tokenizer/instructions.txt`` and writes
``mini_tokenizer/tokenizer.json``. With ``--collect`` it first rewrites the instructions from the installed LIBERO.
"""

import argparse
import importlib.util
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from wmjax.core.errors import UserError

FOLDER = Path(__file__).parents[1] / "wmjax" / "models" / "backbones" / "qwen2_5_vl" / "mini_tokenizer"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
VOCABULARY = 1000
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2.5 splits text into words before merging bytes."""
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's special tokens, in the order of their ids."""


def collect_instructions() -> list[str]:
    """The instructions of LIBERO's suites, and LIBERO-PRO's paraphrases of them if they are installed.

    LIBERO names a task by its file; paraphrases are in the task files' ``:language`` lines.

    Raises:
        UserError: LIBERO is not installed.

    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("package libero is not installed; ./setup.sh sim installs it")
    found: set[str] = set()
    for root in spec.submodule_search_locations:
        for suite in SUITES:
            for path in (Path(root) / "libero" / "bddl_files" / suite).glob("*.bddl"):
                found.add(re.sub(r"^.*SCENE\d+_", "", path.stem).replace("_", " "))
            for path in (Path(root) / "libero" / "bddl_files" / f"{suite}_lan").glob("*.bddl"):
                match = re.search(r"\(:language\s+([^)]*)\)", path.read_text(encoding="utf-8"))
                if match:
                    found.add(" ".join(match[1].split()))
    return sorted(found)


def build(instructions: list[str]) -> Tokenizer:
    """Trains the tokenizer; every word of the instructions becomes one token if the vocabulary allows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = instructions + [line.capitalize() for line in instructions]
    tokenizer.train_from_iterator([*lines, "system\nuser\nassistant\n"], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def main() -> None:
    """Parses the command line and writes the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", action="store_true", help="rewrite instructions.txt from the installed LIBERO")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    corpus = FOLDER / "instructions.txt"
    if arguments.collect:
        corpus.write_text("\n".join(collect_instructions()) + "\n", encoding="utf-8")
    tokenizer = build(corpus.read_text(encoding="utf-8").splitlines())
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    print(f"{FOLDER / 'tokenizer.json'}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
