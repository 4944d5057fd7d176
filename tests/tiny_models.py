"""Models of a few thousand weights, built from the real classes without training or downloads."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIZE_PX = 32
TEXT_WINDOW = 16
"""Tokens, the first and the last included; the tokenizer makes one of every byte."""
_WIDTH = 16
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

_DIFFUSERS: Any = diffusers
"""Its classes are not annotated."""


def stable_diffusion(prediction_type: str = "epsilon", seed: int = 0, time_cond_proj_dim: int | None = None) -> Any:
    """A Stable Diffusion in eval mode, float32: like 1.5 for ``epsilon`` (PNDM), like 2.1 for ``v_prediction`` (DDIM).

    Random networks answer faintly; some layers are turned up so that prompts, guidance and steps can be seen in
    the picture, and the picture is not all grey.
    """
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    text_encoder, unet = _clip(tokenizer), _unet(time_cond_proj_dim=time_cond_proj_dim)
    return _DIFFUSERS.StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=_loud(unet),
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def with_checker(model: Any, threshold: float, seed: int = 0) -> Any:
    """A Stable Diffusion with a safety checker, which flags what is nearer than ``threshold`` (-1..1) to a concept."""
    torch.manual_seed(seed)
    vision = {
        "hidden_size": _WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE_PX,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=_WIDTH)).eval()
    with torch.no_grad():
        for name in ("concept_embeds", "special_care_embeds"):
            getattr(checker, name).normal_()
            getattr(checker, f"{name}_weights").fill_(threshold if name == "concept_embeds" else 1.0)
    extractor = CLIPImageProcessorPil(size={"shortest_edge": SIZE_PX}, crop_size={"height": SIZE_PX, "width": SIZE_PX})
    parts = {**model.components, "safety_checker": checker, "feature_extractor": extractor}
    return _DIFFUSERS.StableDiffusionPipeline(**parts)


def latent_consistency(*, xl: bool = False) -> Any:
    """A Stable Diffusion whose U-Net takes the guidance scale as an input."""
    model = stable_diffusion_xl(time_cond_proj_dim=8) if xl else stable_diffusion(time_cond_proj_dim=8)
    model.scheduler = _DIFFUSERS.LCMScheduler.from_config(model.scheduler.config)
    return model


def stable_diffusion_xl(seed: int = 0, time_cond_proj_dim: int | None = None) -> Any:
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    unet = _unet(
        cross_attention_dim=2 * _WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
        time_cond_proj_dim=time_cond_proj_dim,
    )
    scheduler = _DIFFUSERS.EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading")
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)  # as published
    return _DIFFUSERS.StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=_clip(tokenizer),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_loud(unet),
        scheduler=scheduler,
        add_watermarker=False,
    )


def stable_diffusion_3(seed: int = 0, *, dynamic_shifting: bool = False) -> Any:
    """With ``dynamic_shifting`` as in 3.5 medium; without T5 where there is none in the folder."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    transformer = _DIFFUSERS.SD3Transformer2DModel(
        sample_size=SIZE_PX // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * _WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=16,
    )
    return _DIFFUSERS.StableDiffusion3Pipeline(
        vae=_autoencoder(shift_factor=0.1),
        text_encoder=_clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_3=_t5(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=_t5_tokenizer(),
        transformer=_loud(transformer),
        scheduler=_DIFFUSERS.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shifting),
    )


def flux(seed: int = 0, *, guidance_embeds: bool = True) -> Any:
    """Like dev, or without ``guidance_embeds`` like schnell."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    transformer = _DIFFUSERS.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * _WIDTH,
        pooled_projection_dim=_WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return _DIFFUSERS.FluxPipeline(
        vae=_autoencoder(shift_factor=0.1),
        text_encoder=_clip(tokenizer),
        text_encoder_2=_t5(),
        tokenizer=tokenizer,
        tokenizer_2=_t5_tokenizer(),
        transformer=_loud(transformer),
        scheduler=_DIFFUSERS.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds),
    )


def pixart(seed: int = 0, *, sigma: bool = False) -> Any:
    """Alpha as for 1024 px, which takes the picture's size as an input, or ``sigma``, which does not."""
    torch.manual_seed(seed)
    transformer = _DIFFUSERS.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=2 * _WIDTH,
        sample_size=64 if sigma else 128,
        patch_size=2,
        use_additional_conditions=not sigma,
    )
    stock_class = _DIFFUSERS.PixArtSigmaPipeline if sigma else _DIFFUSERS.PixArtAlphaPipeline
    return stock_class(
        vae=_autoencoder(),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        transformer=_loud(transformer),
        scheduler=_DIFFUSERS.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
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


def _clip(tokenizer: CLIPTokenizer, encoder_class: Any = CLIPTextModel) -> Any:
    config = CLIPTextConfig(
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
    return encoder_class(config).eval()


def _t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*special, *((chr(code), -3.0) for code in range(33, 127))], extra_ids=0)


def _t5() -> Any:
    config = T5Config(
        vocab_size=98, d_model=2 * _WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def _loud(denoiser: Any) -> Any:
    """Text and output layers turned up."""
    with torch.no_grad():
        for name, weights in denoiser.named_parameters():
            if name.startswith(("conv_out.", "proj_out.")) or "attn2.to_out" in name or "attn2.to_v" in name:
                weights *= 3
    return denoiser


def _unet(**changes: Any) -> Any:
    settings = {
        "sample_size": SIZE_PX // 4,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": _WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return _DIFFUSERS.UNet2DConditionModel(**{**settings, **changes}).eval()


def _autoencoder(**changes: Any) -> Any:
    """Pictures (n, 3, 32, 32) to latents (n, 4, 8, 8) and back."""
    autoencoder = _DIFFUSERS.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE_PX,
        **changes,
    ).eval()
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight *= 2
    return autoencoder


def _scheduler(prediction_type: str) -> Any:
    if prediction_type == "epsilon":
        scheduler = _DIFFUSERS.PNDMScheduler(**_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
        scheduler.register_to_config(clip_sample=False)  # no key of PNDM's; published models have it for the others
        return scheduler
    return _DIFFUSERS.DDIMScheduler(
        **_BETAS,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
