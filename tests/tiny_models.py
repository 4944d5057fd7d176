"""Models of a few thousand weights, built from the real classes without training or downloads."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE_PX = 32
TEXT_WINDOW = 16
"""Tokens, the first and the last included; the tokenizer makes one of every byte."""
_WIDTH = 16

_DIFFUSERS: Any = diffusers
"""Its classes are not annotated."""


def stable_diffusion(prediction_type: str = "epsilon", seed: int = 0) -> Any:
    """A Stable Diffusion in eval mode, float32: like 1.5 for ``epsilon`` (PNDM), like 2.1 for ``v_prediction`` (DDIM).

    Random networks answer faintly; three layers are turned up so that prompts, guidance and steps can be seen in
    the picture, and the picture is not all grey.
    """
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    text_encoder, unet, autoencoder = _text_encoder(tokenizer), _unet(), _autoencoder()
    with torch.no_grad():
        for name, weights in unet.named_parameters():
            if name.startswith("conv_out.") or "attn2.to_out" in name or "attn2.to_v" in name:
                weights *= 3
        autoencoder.decoder.conv_out.weight *= 2
    return _DIFFUSERS.StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(model: Any, folder: Path) -> Path:
    """Write it in diffusers format; returns ``folder``."""
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def _tokenizer() -> CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_WINDOW)


def _text_encoder(tokenizer: CLIPTokenizer) -> Any:
    text_encoder: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=32,
            projection_dim=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TEXT_WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return text_encoder.eval()


def _unet() -> Any:
    return _DIFFUSERS.UNet2DConditionModel(
        sample_size=SIZE_PX // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


def _autoencoder() -> Any:
    """Pictures (n, 3, 32, 32) to latents (n, 4, 8, 8) and back."""
    return _DIFFUSERS.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE_PX,
    ).eval()


def _scheduler(prediction_type: str) -> Any:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if prediction_type == "epsilon":
        scheduler = _DIFFUSERS.PNDMScheduler(**betas, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
        scheduler.register_to_config(clip_sample=False)  # no key of PNDM's; published models have it for the others
        return scheduler
    return _DIFFUSERS.DDIMScheduler(
        **betas,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
