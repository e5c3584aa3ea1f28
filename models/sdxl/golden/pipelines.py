"""Whole runs of diffusers' SDXL pipelines on the folders of three tiny shapes, for tests/pipelines.rs and `cargo xtask golden sdxl`.

    pinion weights synth sdxl-tiny -o BASE
    pinion weights synth sdxl-tiny-refiner -o REFINER
    pinion weights synth sdxl-tiny-inpaint -o INPAINT
    python pipelines.py BASE REFINER INPAINT      # writes run-*.safetensors, lora-*.safetensors and trained.tar beside itself

Every random number that a run draws is in its file, so that another program can make the same run. Images and latents are
stored as the reference has them, `[batch, channels, height, width]`.
"""

import io
import json
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.autoencoders import vae as vae_module
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as img2img_module
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_inpaint as inpaint_module
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral_module
from safetensors.torch import load, load_file, save, save_file

from schedulers import SCHEDULERS

base, refiner, inpaint = (Path(folder) for folder in sys.argv[1:4])
here = Path(__file__).parent
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(21)

HEIGHT, WIDTH = 48, 64
STEPS = 20
PROMPT, NEGATIVE = "An astronaut riding a rainbow unicorn!", "low quality, blurry"


def normal(*shape):
    return torch.randn(*shape, generator=generator)


@contextmanager
def recorded(drawn):
    """Every draw is ours and is kept, by who drew it."""

    def draw(who):
        def randn_tensor(shape, **_):
            noise = normal(*shape)
            drawn.setdefault(who, []).append(noise)
            return noise

        return randn_tensor

    modules = {"vae": vae_module, "start": img2img_module, "paint": inpaint_module, "step": ancestral_module}
    kept = {who: module.randn_tensor for who, module in modules.items()}
    for who, module in modules.items():
        module.randn_tensor = draw(who)
    try:
        yield
    finally:
        for who, module in modules.items():
            module.randn_tensor = kept[who]


def scheduled(pipe, name):
    kind, more = SCHEDULERS[name]
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)
    return pipe


def keeping(result):
    """Latents after each call of the scheduler, counted through all of a run's pipelines."""

    def each(_, __, ___, given):
        number = sum(name.startswith("latents_after_step_") for name in result)
        result[f"latents_after_step_{number}"] = given["latents"]
        return given

    return {"callback_on_step_end": each, "callback_on_step_end_tensor_inputs": ["latents"]}


def raw(pipe, latents):
    return pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample


def told(pipe, result, prompt):
    """What the texts were read as, and one forward of the UNet."""
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(prompt, negative_prompt=NEGATIVE)
    result.update(
        prompt_embeds=embeds, negative_prompt_embeds=negative, pooled=pooled, negative_pooled=negative_pooled,
        ids1=torch.tensor(pipe.tokenizer(prompt, padding="max_length", max_length=77).input_ids),
        ids2=torch.tensor(pipe.tokenizer_2(prompt, padding="max_length", max_length=77).input_ids),
        time_ids=torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]], dtype=torch.float32),
    )
    more = {"text_embeds": pooled, "time_ids": result["time_ids"]}
    result["unet_t801"] = pipe.unet(result["latents_init_unit"], 801, embeds, added_cond_kwargs=more).sample


def keep(name, result, **about):
    about = {"prompt": PROMPT, "negative": NEGATIVE, "res": f"{WIDTH}x{HEIGHT}", **about}
    about["made_with"] = f"diffusers {diffusers.__version__}, torch {torch.__version__}"
    about = {key: str(value) for key, value in about.items()}
    for key, tensor in result.items():
        assert torch.isfinite(tensor).all(), (name, key)
    kinds = {key: torch.uint32 if key.startswith("ids") else torch.float32 for key in result}
    result = {key: tensor.detach().to(kinds[key]).contiguous() for key, tensor in result.items()}
    save_file(result, here / f"run-{name}.safetensors", metadata=about)
    print(name, len(result), sum(tensor.nbytes for tensor in result.values()))


def common(guidance, steps):
    return {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": steps, "guidance_scale": guidance,
        "output_type": "latent",
    }


def text_to_image(name, scheduler, guidance=7.5, steps=STEPS, whole=False, lora=None, prompt=PROMPT, asked=PROMPT):
    pipe = scheduled(StableDiffusionXLPipeline.from_pretrained(base), scheduler)
    pipe.set_progress_bar_config(disable=True)
    result, drawn = {"latents_init_unit": normal(1, 4, HEIGHT // 8, WIDTH // 8)}, {}
    if lora:
        adapt(pipe, "lora-old.safetensors" if lora == TRAINED else lora, 0.6)
    if lora == TRAINED:
        teach(pipe)
    with recorded(drawn):
        latents = pipe(
            **{**common(guidance, steps), "prompt": prompt}, height=HEIGHT, width=WIDTH,
            latents=result["latents_init_unit"], **keeping(result),
        ).images
    for number, noise in enumerate(drawn.get("step", [])):
        result[f"noise_step_{number}"] = noise
    result["timesteps"] = pipe.scheduler.timesteps
    if hasattr(pipe.scheduler, "sigmas"):
        result["sigmas"] = pipe.scheduler.sigmas
    if whole:
        told(pipe, result, prompt)
        result["image_raw"] = raw(pipe, latents)
    about = {"lora": lora, "lora_scale": 0.6} if lora else {}
    if scheduler != "K_EULER":
        about["scheduler"] = scheduler
    if asked != PROMPT:
        about["prompt"] = asked
    keep(name, result, steps=steps, guidance=guidance, **about)


def picture():
    """Waves, so that the VAE has something to say."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) / HEIGHT, torch.arange(WIDTH) / WIDTH, indexing="ij")
    return torch.stack([torch.sin(9 * x + 4 * y), torch.cos(7 * y), torch.sin(11 * x * y)])[None] * 0.9


def image_to_image(name, scheduler, strength, mask=None, guidance=7.5, steps=STEPS, folder=base):
    kind = StableDiffusionXLInpaintPipeline if mask is not None else StableDiffusionXLImg2ImgPipeline
    pipe = scheduled(kind.from_pretrained(folder), scheduler)
    pipe.set_progress_bar_config(disable=True)
    result, drawn, more = {"init_image": picture()}, {}, {}
    if mask is not None:
        result["mask"] = mask
        more = {"mask_image": mask, "height": HEIGHT, "width": WIDTH}
    with recorded(drawn):
        latents = pipe(
            **common(guidance, steps), image=result["init_image"], strength=strength, **more, **keeping(result)
        ).images
    result["latents_init_unit"] = drawn["paint" if mask is not None else "start"][0]
    # Where all of an image is painted over, a net that reads the masked one is not shown the whole.
    if not (folder is inpaint and strength == 1):
        result["image_noise_unit"] = drawn["vae"][0]
    if folder is inpaint:
        result["masked_noise_unit"] = drawn["vae"][-1]
    for number, noise in enumerate(drawn.get("step", [])):
        result[f"noise_step_{number}"] = noise
    result["image_raw"] = raw(pipe, latents)
    keep(name, result, steps=steps, guidance=guidance, scheduler=scheduler, strength=strength)


def refined(name, scheduler, refine, share=0.8, guidance=5.0):
    pipe = scheduled(StableDiffusionXLPipeline.from_pretrained(base), scheduler)
    second = scheduled(StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner), scheduler)
    result, drawn = {"latents_init_unit": normal(1, 4, HEIGHT // 8, WIDTH // 8)}, {}
    ensemble = refine == "expert_ensemble_refiner"
    with recorded(drawn):
        for each in (pipe, second):
            each.set_progress_bar_config(disable=True)
        latents = pipe(
            **common(guidance, STEPS), height=HEIGHT, width=WIDTH, latents=result["latents_init_unit"],
            **({"denoising_end": share} if ensemble else {}), **keeping(result),
        ).images
        latents = second(
            **common(guidance, STEPS if ensemble else 10), image=latents,
            **({"denoising_start": share} if ensemble else {}), **keeping(result),
        ).images
    for number, noise in enumerate(drawn.get("step", [])):
        result[f"noise_step_{number}"] = noise
    about = {"high_noise_frac": share} if ensemble else {"refine_steps": 10}
    if not ensemble:
        result["refine_noise_unit"] = drawn["start"][0]
    result["image_raw"] = raw(pipe, latents)
    keep(name, result, steps=STEPS, guidance=guidance, scheduler=scheduler, refine=refine, **about)


UNET_MODULES = [
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_k",
    "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_v",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
    "up_blocks.1.attentions.0.proj_out",
]
TEXT_MODULES = ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1"]


def loras():
    """The same changes as kohya's scripts write them and as peft does, and the attention's alone as old diffusers did."""
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    kohya, peft, old = {}, {}, {}
    rank, alpha = 4, 2.0
    parts = {"unet": (pipe.unet, "lora_unet_", UNET_MODULES)}
    parts["text_encoder"] = (pipe.text_encoder, "lora_te1_", TEXT_MODULES)
    parts["text_encoder_2"] = (pipe.text_encoder_2, "lora_te2_", TEXT_MODULES)
    for part, (net, prefix, modules) in parts.items():
        for module in modules:
            # transformers has dropped the text model's own level.
            names = [module, module.removeprefix("text_model.")]
            known = dict(net.named_modules())
            shape = next(known[name] for name in names if name in known).weight.shape
            down = normal(rank, *shape[1:]) / shape[1:].numel() ** 0.5
            up = normal(shape[0], rank, *[1 for _ in shape[2:]])
            name = prefix + module.replace(".", "_")
            kohya[f"{name}.lora_down.weight"], kohya[f"{name}.lora_up.weight"] = down.half(), up.half()
            kohya[f"{name}.alpha"] = torch.tensor(alpha)
            peft[f"{part}.{module}.lora_A.weight"], peft[f"{part}.{module}.lora_B.weight"] = down.half(), up.half()
            if ".to_" in module:
                place, layer = module.removesuffix(".0").rsplit(".", 1)
                # As cog-sdxl's trainer writes them.
                old[f"{place}.processor.{layer}_lora.down.weight"] = down.half()
                old[f"{place}.processor.{layer}_lora.up.weight"] = up.half()
    for name, tensors in {"kohya": kohya, "peft": peft, "old": old}.items():
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, here / f"lora-{name}.safetensors", metadata={"format": "pt"})


WORDS = ["<s0>", "<s1>"]
TRAINED = "trained.tar"


def trained():
    """What cog-sdxl's trainer gives: the oldest LoRA, two learned words, and what a prompt calls them together."""
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    tables = {}
    for number, encoder in enumerate((pipe.text_encoder, pipe.text_encoder_2)):
        table = encoder.get_input_embeddings().weight
        tables[f"text_encoders_{number}"] = (normal(len(WORDS), table.shape[1]) * table.std()).half()
    files = {
        "lora.safetensors": (here / "lora-old.safetensors").read_bytes(),
        "embeddings.pti": save(tables),
        "special_params.json": json.dumps({"TOK": "".join(WORDS)}).encode(),
    }
    with tarfile.open(here / TRAINED, "w") as tar:
        folder = tarfile.TarInfo("checkpoints")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            # A time with a fraction, as a file has it, makes Python write an extended header.
            member.size, member.mtime = len(content), 1693526400.5
            tar.addfile(member, io.BytesIO(content))


def teach(pipe):
    """As cog-sdxl's TokenEmbeddingsHandler does it."""
    with tarfile.open(here / TRAINED) as tar:
        tables = load(tar.extractfile("embeddings.pti").read())
    for number, (tokenizer, encoder) in enumerate(
        ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    ):
        assert tokenizer.add_tokens(WORDS, special_tokens=True) == len(WORDS)
        encoder.resize_token_embeddings(len(tokenizer))
        ids = tokenizer.convert_tokens_to_ids(WORDS)
        encoder.get_input_embeddings().weight[ids] = tables[f"text_encoders_{number}"].float()


def adapt(pipe, lora, scale):
    """The UNet's part by diffusers itself. The texts' by hand: this diffusers looks for their layers where this transformers
    no longer has them, says so, and goes on without."""
    tensors = load_file(here / lora)
    texts = ("lora_te", "text_encoder")
    unet = {key: tensor for key, tensor in tensors.items() if not key.startswith(texts)}
    # The oldest names are no longer read; they are the attention's.
    for old, new in ((".processor.", "."), ("_lora.down.", ".lora_A."), ("_lora.up.", ".lora_B."), ("to_out.lora", "to_out.0.lora")):
        unet = {key.replace(old, new): tensor for key, tensor in unet.items()}
    unet = {key if key.startswith(("lora_unet_", "unet.")) else f"unet.{key}": tensor for key, tensor in unet.items()}
    pipe.load_lora_weights(unet)
    pipe.fuse_lora(lora_scale=scale)
    adapted = sum("lora_A" in name for name, _ in pipe.unet.named_parameters())
    assert adapted == len(UNET_MODULES) or lora == "lora-old.safetensors", adapted
    downs = [key for key in tensors if key.startswith(texts) and ("lora_down" in key or "lora_A" in key)]
    for key in downs:
        second = key.startswith(("lora_te2_", "text_encoder_2"))
        net = pipe.text_encoder_2 if second else pipe.text_encoder
        module = next(name for name in TEXT_MODULES if name in key or name.replace(".", "_") in key)
        known = dict(net.named_modules())
        layer = known[module if module in known else module.removeprefix("text_model.")]
        down, up = tensors[key].float(), tensors[key.replace("down", "up").replace("lora_A", "lora_B")].float()
        alpha = float(tensors[key.replace("lora_down.weight", "alpha")]) if "lora_down" in key else len(down)
        layer.weight += scale * alpha / len(down) * up @ down


with torch.no_grad():
    for scheduler in SCHEDULERS:
        text_to_image(scheduler, scheduler, whole=scheduler == "K_EULER")
    text_to_image("unguided", "K_EULER", guidance=1.0, steps=3)
    image_to_image("image", "K_EULER", 0.6)
    image_to_image("image-heun", "HeunDiscrete", 0.6)
    image_to_image("image-pndm", "PNDM", 0.6)
    hole = torch.zeros(1, 1, HEIGHT, WIDTH)
    hole[..., 10:40, 20:50] = 1
    image_to_image("paint", "K_EULER", 0.7, hole)
    image_to_image("paint-all", "K_EULER_ANCESTRAL", 1.0, hole)
    image_to_image("paint-ddim", "DDIM", 0.7, hole)
    refined("ensemble", "K_EULER", "expert_ensemble_refiner")
    refined("ensemble-heun", "HeunDiscrete", "expert_ensemble_refiner")
    refined("refined", "K_EULER", "base_image_refiner")
    loras()
    for kind in ("kohya", "peft", "old"):
        text_to_image(f"lora-{kind}", "K_EULER", steps=4, lora=f"lora-{kind}.safetensors", whole=kind == "kohya")
    # Draws of their own, whatever stands above.
    generator.manual_seed(22)
    image_to_image("inpaint", "K_EULER", 0.7, hole, steps=8, folder=inpaint)
    image_to_image("inpaint-all", "K_EULER_ANCESTRAL", 1.0, hole, steps=5, folder=inpaint)
    trained()
    asked = "a photo of TOK riding a rainbow unicorn"
    text_to_image(
        "trained", "K_EULER", steps=4, lora=TRAINED, whole=True, asked=asked, prompt=asked.replace("TOK", "".join(WORDS))
    )
