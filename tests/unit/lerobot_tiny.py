"""Folders of LeRobot's flow policies, written by lerobot itself, with networks of a few thousand random weights."""

from __future__ import annotations

import string
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import torch

STATE, TOP, WRIST = "observation.state", "observation.images.top", "observation.images.wrist"
SHAPES = {STATE: (4,), TOP: (3, 24, 32), WRIST: (3, 16, 16)}
WIDTH = 32
_MARKS = ["<pad>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<bos>"]
_SMALL = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_language_model(folder: Path) -> Path:
    """A tokenizer of characters, image processors and sizes, in the place of a download."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = [*_MARKS, *string.printable]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    names = ("image", "fake_image", "global_image", "end_of_utterance")
    special = {f"{name}_token": mark for name, mark in zip(names, _MARKS[2:6], strict=True)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", extra_special_tokens=special
    )
    parts = (SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor())
    SmolVLMProcessor(*parts, chat_template="{{ messages }}").save_pretrained(folder)
    text = {
        "model_type": "llama",
        "vocab_size": len(words),
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    SmolVLMConfig(
        image_token_id=2,
        pad_token_id=0,
        scale_factor=2,
        text_config={**_SMALL, **text, "num_hidden_layers": 2},
        vision_config={**_SMALL, "image_size": 32, "patch_size": 8},
    ).save_pretrained(folder)
    return folder


def write_policy(kind: str, folder: Path, language_model: Path, **changes) -> Path:
    """A policy of ``smolvla``, ``pi0`` or ``pi05`` with random weights, its processors and statistics."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    with tiny(kind, language_model):
        policy_class = get_policy_class(kind)
        own = {"vlm_model_name": str(language_model), "num_vlm_layers": 2, "resize_imgs_with_padding": (32, 32)}
        sizes = {"chunk_size": 6, "n_action_steps": 4, "max_state_dim": 8, "max_action_dim": 5, "device": "cpu"}
        steps = (
            {"num_steps": 3, **own} if kind == "smolvla" else {"num_inference_steps": 3, "image_resolution": (28, 28)}
        )
        visual = {key: PolicyFeature(FeatureType.VISUAL, shape) for key, shape in SHAPES.items() if key != STATE}
        config = make_policy_config(
            kind,
            input_features={STATE: PolicyFeature(FeatureType.STATE, SHAPES[STATE]), **visual},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
            **{**sizes, **steps, **changes},
        )
        torch.manual_seed(0)
        policy = policy_class(config).eval()
        # PaliGemma's weights start at 0.02, which lets through next to nothing of what it is asked
        for name, parameter in policy.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3 if "embed" in name else parameter[0].numel() ** -0.5)
        policy.save_pretrained(folder)
        for side in make_pre_post_processors(config, dataset_stats=statistics()):
            side.save_pretrained(folder)
    return folder


def statistics() -> dict[str, dict[str, torch.Tensor]]:
    """Of a data set that never was."""
    state, action = torch.tensor([0.5, 0.0, 1.0, -1.0]), torch.tensor([0.1, -0.2])
    found = {}
    for key, mean in ((STATE, state), ("action", action)):
        std = 0.5 + torch.arange(len(mean))
        found[key] = {"mean": mean, "std": std, "q01": mean - 2 * std, "q99": mean + 2 * std}
    return found


def tiny(kind: str, language_model: Path):
    """Sizes that pi0 and pi05 have in their code, and the tokenizer that they name there, made small."""
    from contextlib import ExitStack

    stack = ExitStack()
    if kind == "smolvla":
        return stack
    model = import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    processor = import_module(f"lerobot.policies.{kind}.processor_{kind}")
    whole, tokenizer = model.PaliGemmaForConditionalGenerationWithPiGemma, processor.TokenizerProcessorStep

    def small(config):
        config.text_config.vocab_size = config._vocab_size = config.image_token_index = len(_MARKS) + 100
        config.vision_config.update({**_SMALL, "patch_size": 14, "projection_dim": WIDTH})
        return whole(config=config)

    def local(**settings):
        return tokenizer(**{**settings, "tokenizer_name": str(language_model)})

    sizes = model.GemmaConfig(width=WIDTH, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16)
    stack.enter_context(patch.object(model, "PaliGemmaForConditionalGenerationWithPiGemma", small))
    stack.enter_context(patch.object(model, "get_gemma_config", lambda variant: sizes))
    stack.enter_context(patch.object(processor, "TokenizerProcessorStep", local))
    return stack
