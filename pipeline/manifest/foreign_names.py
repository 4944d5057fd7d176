"""Names that other programs give to the settings of an image: a column with one of them may mean a setting."""

import difflib
import re
import unicodedata
from collections.abc import Mapping

SIZE = "size"
"""Stands for width and height in one column, which Darkroom does not read."""

_FOREIGN: Mapping[str, str] = {
    "prompt": "caption captions text texts txt prompts prompt_text text_prompt positive positive_prompt "
    "positive_conditioning image_caption image_prompt alt alt_text title description sentence query",
    "negative_prompt": "negative negatives neg neg_prompt negative_prompts negative_text negative_conditioning "
    "negative_caption prompt_negative uncond uncond_prompt unconditional unconditional_prompt undesired",
    "prompt_id": "id ids key uid uuid guid prompt_key prompt_no prompt_number prompt_index image_id caption_id "
    "sample_id row_id item_id question_id",
    "seed": "random_seed noise_seed rng_seed rand_seed image_seed generation_seed initial_seed sampler_seed "
    "generator_seed manual_seed seed_value seed_number seed_num seed_id rng random_state",
    "seeds": "seed_list list_of_seeds random_seeds noise_seeds all_seeds",
    "guidance_scale": "cfg cfgs cfg_scale cfg_value cfg_strength cfg_weight cfg_guidance guidance guidance_scales "
    "guidance_strength guidance_weight guidance_value text_guidance_scale classifier_free_guidance "
    "classifier_free_guidance_scale unconditional_guidance_scale prompt_guidance scale",
    "num_inference_steps": "steps step n_steps num_steps nb_steps number_of_steps no_of_steps step_count steps_count "
    "inference_steps number_of_inference_steps n_inference_steps inference_step sampling_steps sample_steps "
    "sampler_steps num_sampling_steps diffusion_steps num_diffusion_steps denoising_steps num_denoising_steps "
    "generation_steps ddim_steps iterations",
    "scheduler": "sampler samplers sampler_name sampler_type sampler_index sampler_id sampling_method sample_method "
    "sampling_sampler sampling scheduler_name scheduler_type scheduler_class noise_scheduler schedule schedule_type "
    "solver",
    "width": "w image_width img_width picture_width output_width target_width pixel_width width_px size_x res_x",
    "height": "h image_height img_height picture_height output_height target_height pixel_height height_px size_y "
    "res_y",
    SIZE: "size sizes image_size img_size picture_size resolution image_resolution res dimensions dimension "
    "image_dimensions width_height wxh aspect_ratio",
}
"""Names in AUTOMATIC1111's web UI, ComfyUI, InvokeAI, diffusers, img2dataset, LAION, DiffusionDB and PartiPrompts."""

_NOT_MISSPELT = frozenset({"speed", "steep", "stems", "stops", "weight", "weights", "promoter"})
"""Words of their own that differ little from a setting."""
_LIKENESS = 0.8


_CYRILLIC = (
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u0501\u04bb\u051d\u0442\u043d\u0432\u043c\u043a"
)
_GREEK = "\u03bf\u03b1\u03b9\u03c1\u03bd\u03c4\u03ba\u03c5"
_ALIKE = str.maketrans(_CYRILLIC + _GREEK, "aeopcyxisjdhwthbmk" + "oaipvtku")
"""Letters of other alphabets, small or capital, that look like Latin ones."""


def normalised(name: str) -> str:
    """Return the letters and digits of a name in small Latin letters, so that names that look alike agree.

    ``CFG Scale``, ``cfg_scale`` and ``cfgScale`` agree, and so do full-width, Cyrillic and Greek letters like them.
    """
    plain = unicodedata.normalize("NFKC", name).casefold().translate(_ALIKE)
    return re.sub(r"[\W_]+", "", plain)


_MEANT: Mapping[str, str] = {
    normalised(name): ours for ours, names in _FOREIGN.items() for name in (ours, *names.split())
}


def meant(name: str) -> str | None:
    """Return the setting that a column's name may mean, ``SIZE`` for both sides in one, None if it is like none."""
    return _MEANT.get(normalised(name)) or misspelt(name)


def misspelt(name: str) -> str | None:
    """Return the setting whose own name this is, in other letters or misspelt; None if it is none."""
    plain = normalised(name)
    own = {normalised(ours): ours for ours in _FOREIGN if ours != SIZE}
    if plain in own:
        return own[plain]
    if plain in _MEANT or plain in _NOT_MISSPELT:
        return None
    alike = difflib.get_close_matches(plain, [one for one in own if one[:1] == plain[:1]], n=1, cutoff=_LIKENESS)
    return own[alike[0]] if alike else None
