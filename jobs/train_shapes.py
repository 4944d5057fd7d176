"""Make the built-in model ``shapes`` from nothing: ``python -m jobs.train_shapes``.

Synthetic captioned pictures (``pipeline/shapes/pictures.py``) train an autoencoder, then a text encoder and a
U-Net together, with captions dropped at random for classifier-free guidance (Ho and Salimans, arXiv:2207.12598).
The U-Net predicts velocity (Salimans and Ho, arXiv:2202.00512). The betas are Stable Diffusion's with a larger end:
the last step is almost pure noise, so that plain white and plain black backgrounds can be drawn, and the middle is
not as noisy as DDPM's linear betas make it. The weights that ship were trained for 6,400 steps on pictures with more
variation and 3,600 on these (``--start-from``); a training from nothing has as many steps in all.

Everything is seeded by step, so a run stopped at any time goes on from its checkpoint with the same batches.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.shapes.pictures import PICTURE_SIZE_PX, Scene, caption, draw, training_scene

TEXT_WINDOW = 32
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
KL_WEIGHT = 1e-3
"""Of the divergence per latent value, against pixel errors in -1..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much to train; a step takes half a second on two CPU cores."""

    autoencoder_steps: int = 1800
    pool_pictures: int = 20000
    denoiser_steps: int = 10000
    seed: int = 0
    start_from: Path | None = None
    """A model folder whose text encoder and U-Net are trained further; None begins with random weights."""


def build_tokenizer(seed: int) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the captions' words whole and any other text in bytes."""
    random = Random(seed)
    captions = [caption(training_scene(random), random) for _ in range(5000)]
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({word.strip(",") for text in captions for word in text.split()})
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learned.train_from_iterator(words * 10, trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    # CLIP's own order: bytes, bytes that end a word, merges, then the two special tokens.
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_WINDOW)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            projection_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_autoencoder() -> AutoencoderKL:
    """Pictures (n, 3, 96, 96) in -1..1 to latents (n, 4, 24, 24) and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=PICTURE_SIZE_PX,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=PICTURE_SIZE_PX // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


class Training:
    """One stage's modules, optimiser, moving average and checkpoint; owns all mutable state of training."""

    def __init__(self, name: str, modules: nn.ModuleDict, steps: int, peak_rate: float, folder: Path) -> None:
        self.name, self.modules, self.steps = name, modules, steps
        self.optimiser = torch.optim.Adam(modules.parameters(), lr=peak_rate, betas=(0.9, 0.99))
        self.rate = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, peak_rate, total_steps=steps + 1, pct_start=0.06
        )
        self.average = {key: value.detach().clone() for key, value in modules.state_dict().items()}
        self.step = 0
        self.path = folder / f"{name}.pt"
        if self.path.exists():
            self._load()

    def run(self, loss_at: Callable[[int], Tensor]) -> None:
        """Step until done; ``loss_at(step)`` builds the batch of that step and returns its scalar loss."""
        began, first, recent = time.monotonic(), self.step, 0.0
        while self.step < self.steps:
            loss = loss_at(self.step)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward unannotated
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimiser.step()
            self.rate.step()
            self.step += 1
            self._update_average()
            recent = loss.item() if not recent else 0.98 * recent + 0.02 * loss.item()
            if self.step % 100 == 0 or self.step == self.steps:
                self._save()
                step_s = (time.monotonic() - began) / (self.step - first)
                pace = f"{step_s:.2f} s/step, {step_s * (self.steps - self.step) / 60:.0f} min left"
                print(f"{self.name}: step {self.step}/{self.steps}, loss {recent:.4f}, {pace}", flush=True)
        self.modules.load_state_dict(self.average)
        self.modules.requires_grad_(False).eval()

    def _update_average(self) -> None:
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.modules.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "modules": self.modules.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rate": self.rate.state_dict(),
            "average": self.average,
        }
        unfinished = self.path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.rename(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True, map_location=next(self.modules.parameters()).device)
        self.modules.load_state_dict(state["modules"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rate.load_state_dict(state["rate"])
        self.average, self.step = state["average"], state["step"]


def to_tensor(pictures: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], device: torch.device) -> Tensor:
    """RGB pictures 0..255 to (n, 3, height, width) in -1..1."""
    return torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(budget: Budget, folder: Path, device: torch.device) -> AutoencoderKL:
    """Absolute and squared error; a KL term that leaves the latents a little noise, which the decoder then forgives.

    The first three quarters of the steps run in bfloat16, which halves their time.
    """
    autoencoder = build_autoencoder().to(device)
    training = Training("autoencoder", nn.ModuleDict({"vae": autoencoder}), budget.autoencoder_steps, 2e-3, folder)

    def loss_at(step: int) -> Tensor:
        random = Random(f"{budget.seed} autoencoder {step}")
        torch.manual_seed(budget.seed * 1_000_003 + step)
        batch = to_tensor([draw(training_scene(random), random) for _ in range(16)], device)
        coarse = step < budget.autoencoder_steps * 0.75
        with torch.autocast(device.type, torch.bfloat16, enabled=coarse):
            posterior = autoencoder.encode(batch).latent_dist
            difference = autoencoder.decode(posterior.sample()).sample.float() - batch
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss: Tensor = difference.abs().mean() + difference.square().mean() + KL_WEIGHT * divergence
        return loss

    training.run(loss_at)
    return autoencoder


@torch.no_grad()
def encode_pool(autoencoder: AutoencoderKL, budget: Budget, device: torch.device) -> tuple[list[Scene], Tensor]:
    """The pictures the denoiser is trained on, as scenes and latents (n, 4, 24, 24)."""
    scenes, latents = [], []
    for start in range(0, budget.pool_pictures, 32):
        random = Random(f"{budget.seed} pool {start}")
        batch = [training_scene(random) for _ in range(32)]
        latents.append(autoencoder.encode(to_tensor([draw(s, random) for s in batch], device)).latent_dist.mean)
        scenes += batch
        if start % 3200 == 0:
            print(f"pool: {start}/{budget.pool_pictures}", flush=True)
    return scenes, torch.cat(latents)


def train_denoiser(
    budget: Budget, folder: Path, tokenizer: CLIPTokenizer, scenes: list[Scene], latents: Tensor
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Velocity loss over uniform timesteps; ``latents`` (n, 4, 24, 24) have unit variance."""
    device = latents.device
    if budget.start_from is None:
        text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    else:
        text_encoder = CLIPTextModel.from_pretrained(budget.start_from / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(budget.start_from / "unet", torch_dtype=torch.float32)
    text_encoder, unet = text_encoder.to(device).train(), unet.to(device).train()
    modules = nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    training = Training("denoiser", modules, budget.denoiser_steps, 1.2e-3, folder)
    scheduler = build_scheduler()

    def loss_at(step: int) -> Tensor:
        random = Random(f"{budget.seed} denoiser {step}")
        torch.manual_seed(budget.seed * 1_000_003 + step)
        chosen = [random.randrange(len(scenes)) for _ in range(32)]
        texts = ["" if random.random() < CAPTION_DROPOUT else caption(scenes[i], random) for i in chosen]
        tokens = tokenizer(texts, padding="max_length", max_length=TEXT_WINDOW, truncation=True, return_tensors="pt")
        conditioning = text_encoder(tokens.input_ids.to(device)).last_hidden_state
        clean = latents[torch.tensor(chosen, device=device)]
        noise = torch.randn_like(clean)
        # Stratified: one timestep from each of 32 equal bands, so that the loss is less noisy than uniform draws.
        times = ((torch.arange(32) + torch.rand(32)) * (1000 / 32)).long().clamp(max=999).to(device)
        noisy = scheduler.add_noise(clean, noise, times)
        velocity = scheduler.get_velocity(clean, noise, times)
        error: Tensor = unet(noisy, times, conditioning).sample - velocity
        return error.square().mean()

    training.run(loss_at)
    return text_encoder, unet


def train(budget: Budget, folder: Path, out: Path, device: torch.device) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(budget.seed)
    tokenizer = build_tokenizer(budget.seed)
    autoencoder = train_autoencoder(budget, folder, device)
    scenes, latents = encode_pool(autoencoder, budget, device)
    scale = 1 / latents.std().item()
    if not math.isfinite(scale):
        raise SystemExit("the autoencoder collapsed: its latents have no variance")
    autoencoder.register_to_config(scaling_factor=scale)
    text_encoder, unet = train_denoiser(budget, folder, tokenizer, scenes, latents * scale)
    model = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with TemporaryDirectory(dir=out.parent) as unfinished:
        model.to(torch.float16).save_pretrained(unfinished, safe_serialization=True)
        Path(unfinished).rename(out)
        Path(unfinished).mkdir()
    print(f"saved {out}")


def main() -> None:
    defaults = Budget()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make, in diffusers format")
    parser.add_argument("--checkpoints", type=Path, default=Path(".work/train_shapes"), help="resumed when it exists")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--start-from", type=Path, help="train this model's text encoder and U-Net further")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--autoencoder-steps", type=int, default=defaults.autoencoder_steps)
    parser.add_argument("--denoiser-steps", type=int, default=defaults.denoiser_steps)
    parser.add_argument("--pool-pictures", type=int, default=defaults.pool_pictures)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    budget = Budget(
        autoencoder_steps=given.autoencoder_steps,
        pool_pictures=given.pool_pictures,
        denoiser_steps=given.denoiser_steps,
        seed=given.seed,
        start_from=given.start_from,
    )
    train(budget, given.checkpoints, given.out, torch.device(given.device))


if __name__ == "__main__":
    main()
