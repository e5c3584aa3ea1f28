"""Makes safety/, the folders `safety_checker` and `feature_extractor` of a pipeline with a tiny random checker, as diffusers and
transformers write them, and safety.safetensors: what they say of a few images.

    python safety.py

The thresholds are set between what the images come to, so that each way to be flagged and not to be flagged is there: by a
concept, by none, and by a concept that counts only because one of special care is near.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion import safety_checker as module
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

here = Path(__file__).parent
torch.set_num_threads(1)
torch.manual_seed(17)
generator = torch.Generator().manual_seed(17)
SIDE = 32
# Larger and smaller than the net's side, upright and lying; one is so high that Pillow begins with its columns.
SIZES = [(64, 64), (97, 45), (20, 50), (40, 120), (32, 32), (48, 33)]


def picture(number, width, height):
    """Waves and noise of their own for each image."""
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    random = np.random.default_rng(number)
    waves = [np.sin(random.uniform(2, 14) * x + random.uniform(2, 14) * y + channel) for channel in range(3)]
    shown = np.stack(waves, -1) * 100 + random.normal(128, 25, (height, width, 3)) + random.uniform(-60, 60, 3)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def random_checker():
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 10, "hidden_act": "quick_gelu",
    }
    config = CLIPConfig(vision_config=vision, text_config={"num_hidden_layers": 1}, projection_dim=24)
    checker = StableDiffusionSafetyChecker(config).eval()
    for name, parameter in checker.named_parameters():
        if parameter.ndim > 1:
            inputs = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) / inputs**0.5
        elif "norm" in name or "layrnorm" in name:
            usual = 1.0 if name.endswith("weight") else 0.0
            parameter.data = usual + torch.randn(parameter.shape, generator=generator) * 0.1
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        # The file has half precision, and what is computed is what it has.
        parameter.data = parameter.data.half().float()
    return checker


def between(values, number):
    """The middle between the so manyth largest and the next."""
    first, second = np.sort(values)[::-1][number : number + 2]
    assert first - second > 0.004, (first, second)
    return float(first + second) / 2


with torch.no_grad():
    checker = random_checker()
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pictures = [picture(number, *size) for number, size in enumerate(SIZES)]
    # One by one: images of many sizes.
    pixels = torch.cat([processor(Image.fromarray(p), return_tensors="pt").pixel_values for p in pictures])
    embeds = checker.visual_projection(checker.vision_model(pixels)[1])
    special = cosine_distance(embeds, checker.special_care_embeds).numpy()
    cosines = cosine_distance(embeds, checker.concept_embeds).numpy()

    thresholds, care = cosines.max(0) + 0.05, special.max(0) + 0.05
    # The two images that are nearest to concept 4 are flagged.
    thresholds[4] = between(cosines[:, 4], 1)
    # Of one of the others special care is taken, and then, but only then, it is too near to another concept.
    others = np.flatnonzero(cosines[:, 4] < thresholds[4])
    cared = others[special[others, 1].argmax()]
    care[1] = special[cared, 1] - 0.004
    ahead = cosines[cared] - np.delete(cosines, cared, 0).max(0)
    ahead[4] = -1
    thresholds[ahead.argmax()] = cosines[cared, ahead.argmax()] + 0.005
    checker.concept_embeds_weights.data = torch.tensor(thresholds).half().float()
    checker.special_care_embeds_weights.data = torch.tensor(care).half().float()

    scores = []

    def heard(value, digits):
        scores.append(round(value, digits))
        return scores[-1]

    module.round = heard
    _, flags = checker(clip_input=pixels, images=[np.zeros((1, 1, 3)) for _ in pictures])
    scores = torch.tensor(np.array(scores).reshape(len(pictures), -1))
    without_care = (scores[:, 3:] - 0.01 * (scores[:, :3] > 0).any(1, keepdim=True) > 0).any(1)
    print("special", special.round(3), "cosines", cosines.round(3)[:, :6], "flags", flags, "without care", without_care)
    assert sum(flags) == 3 and flags[cared] and not without_care[cared]

checker.half().save_pretrained(here / "safety" / "safety_checker")
processor.save_pretrained(here / "safety" / "feature_extractor")
golden = {f"picture_{number}": torch.tensor(p) for number, p in enumerate(pictures)}
golden |= {"pixels": pixels, "embeds": embeds, "scores": scores, "flags": torch.tensor(flags, dtype=torch.uint8)}
save_file({name: tensor.contiguous() for name, tensor in golden.items()}, here / "safety.safetensors")
print(sum(tensor.nbytes for tensor in golden.values()), "bytes")
