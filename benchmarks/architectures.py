"""Published architectures with random weights, as folders in diffusers format: nothing is downloaded.

A network's time does not depend on its weights' values. They are small enough for half precision, and the layers
that read the text and write the answer are turned up, so that prompts and guidance can be seen in the picture.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from pipeline.rendering.loading import DTYPES

SEED = 0
_WINDOW = 77
"""Tokens of a prompt, the first and the last included."""
_LOUDER = 2.0
_LOUD = ("attn2.to_v.", "attn2.to_out.", "conv_out.")

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What ``build`` makes a model of."""

    class_name: str
    side_px: int
    """Of the square pictures it was made for."""
    unet: Config
    vae: Config
    text_encoders: tuple[tuple[str, Config], ...]
    """Class of transformers and configuration."""
    scheduler: tuple[str, Config]
    """Class of diffusers and configuration."""
    gflop: float | None = None
    """Of one evaluation at ``side_px``, multiplications and additions apart."""


def build(architecture: Architecture, folder: Path, *, dtype: str, device: str) -> Path:
    """Draw the weights in ``dtype`` on ``device`` and save them as safetensors; returns ``folder``."""
    kit: Any = diffusers
    tokenizer = byte_tokenizer()
    with _drawing(DTYPES[dtype], device):
        parts = networks(architecture, tokenizer)
    parts |= {name.replace("text_encoder", "tokenizer"): tokenizer for name in parts if "text_encoder" in name}
    scheduler_class, scheduler = architecture.scheduler
    parts["scheduler"] = getattr(kit, scheduler_class).from_config(dict(scheduler))
    if architecture.class_name == "StableDiffusionPipeline":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    getattr(kit, architecture.class_name)(**parts).save_pretrained(folder, safe_serialization=True)
    return folder


def networks(architecture: Architecture, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The parts with weights, by their names in the pipeline."""
    kit: Any = diffusers
    unet, vae = kit.UNet2DConditionModel(**architecture.unet), kit.AutoencoderKL(**architecture.vae)
    with torch.no_grad():
        for name, weights in unet.named_parameters():
            if any(loud in name for loud in _LOUD):
                weights *= _LOUDER
        vae.decoder.conv_out.weight *= _LOUDER
    names = ("text_encoder", "text_encoder_2")
    encoders = (_text_encoder(*encoder, tokenizer) for encoder in architecture.text_encoders)
    return {"unet": unet, "vae": vae, **dict(zip(names, encoders, strict=False))}


@contextmanager
def _drawing(dtype: torch.dtype, device: str) -> Iterator[None]:
    """New tensors are of this dtype and on this device, and the same in every run."""
    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def byte_tokenizer() -> CLIPTokenizer:
    """One token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=_WINDOW)


def _text_encoder(name: str, config: Config, tokenizer: CLIPTokenizer) -> Any:
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    return getattr(transformers, name)(transformers.CLIPTextConfig(**config, **special))


_CLIP_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": _WINDOW, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_CLIP_BIG_G = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "max_position_embeddings": _WINDOW, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "act_fn": "silu", "sample_size": 512,
}  # fmt: skip
_BETAS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False,
}  # fmt: skip

_SD15 = Architecture(
    class_name="StableDiffusionPipeline",
    side_px=512,
    unet={
        "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    },
    vae=_VAE,
    text_encoders=(("CLIPTextModel", _CLIP_L),),
    scheduler=("PNDMScheduler", _BETAS),
    gflop=803,
)  # fmt: skip

_SDXL = Architecture(
    class_name="StableDiffusionXLPipeline",
    side_px=1024,
    unet={
        "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders=(("CLIPTextModel", _CLIP_L), ("CLIPTextModelWithProjection", _CLIP_BIG_G)),
    scheduler=("EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading"}),
    gflop=6761,
)  # fmt: skip

_TINY = Architecture(
    class_name="StableDiffusionPipeline",
    side_px=32,
    unet={
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (16, 32),
        "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
        "sample_size": 32,
    },
    text_encoders=(
        ("CLIPTextModel", {
            "vocab_size": 514, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": _WINDOW,
        }),
    ),
    scheduler=("PNDMScheduler", _BETAS),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {"sd15": _SD15, "sdxl": _SDXL, "tiny": _TINY}
"""Stable Diffusion 1.5, Stable Diffusion XL base 1.0, and one of a few thousand weights to try this out with."""
