"""Makes nets.safetensors and names.json.gz: what diffusers and transformers say on the folders of two tiny shapes.

    pinion weights synth sdxl-tiny -o BASE
    pinion weights synth sdxl-tiny-refiner -o REFINER
    python nets.py BASE REFINER

The weights are seeded random numbers and the same bytes everywhere, so only what they say is kept. Images are stored as the
reference has them, `[batch, channels, height, width]`. names.json.gz says what a single checkpoint file calls every tensor, and
is written only if diffusers' own converters bring such a file back to the folder's tensors.
"""

import gzip
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

base, refiner = Path(sys.argv[1]), Path(sys.argv[2])
here = Path(__file__).parent
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(6)
golden = {}

START, END = 49406, 49407


def normal(*shape):
    return torch.randn(*shape, generator=generator)


def texts(padding):
    """A long one, a short one, and one that fills all 77 places."""
    rows = []
    for length in (31, 4, 75):
        body = torch.randint(1, START, (length,), generator=generator).tolist()
        row = [START, *body, END]
        rows.append(row + [padding] * (77 - len(row)))
    return torch.tensor(rows)


def clips():
    golden["ids1"], golden["ids2"] = texts(END), texts(0)
    first = CLIPTextModel.from_pretrained(base / "text_encoder")
    second = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2")
    golden["hidden1"] = first(golden["ids1"], output_hidden_states=True).hidden_states[-2]
    said = second(golden["ids2"], output_hidden_states=True)
    golden["hidden2"], golden["pooled2"] = said.hidden_states[-2], said.text_embeds


def unets():
    """Two images that are not square and halve unevenly, each with its own text and conditions, at several times."""
    for name, folder, features, ids in (
        ("unet", base, 80, [[1024, 1024, 0, 0, 1024, 1024], [512, 768, 16, 32, 640, 384]]),
        ("refiner", refiner, 48, [[1024, 1024, 0, 0, 6.0], [512, 768, 16, 32, 2.5]]),
    ):
        net = UNet2DConditionModel.from_pretrained(folder / "unet")
        latents, text, pooled = normal(2, 4, 13, 10), normal(2, 77, features), normal(2, 64)
        ids = torch.tensor(ids)
        golden.update({f"{name}_latents": latents, f"{name}_text": text, f"{name}_pooled": pooled, f"{name}_ids": ids})
        for time in (981, 801, 261.5, 1):
            extra = {"text_embeds": pooled, "time_ids": ids}
            golden[f"{name}_t{time}"] = net(latents, time, text, added_cond_kwargs=extra).sample


def vaes():
    vae = AutoencoderKL.from_pretrained(base / "vae")
    pixels, latents = normal(2, 3, 72, 40).clamp(-1, 1), normal(2, 4, 7, 9)
    large, wide = normal(1, 4, 17, 20), normal(1, 3, 130, 140).clamp(-1, 1)
    latent = vae.encode(pixels).latent_dist
    golden.update(pixels=pixels, mean=latent.mean, deviation=latent.std, latents=latents, decoded=vae.decode(latents).sample)
    vae.enable_tiling()
    golden.update(large=large, large_decoded=vae.decode(large).sample)
    golden.update(wide=wide, wide_mean=vae.encode(wide).latent_dist.mean)


def single_file(folder, config, clip_first, clip_second):
    """A checkpoint as the first implementation writes it: {name there: (component, name here, what is taken)}."""
    names = {}

    def add(component, own, theirs, take="whole"):
        names.setdefault(component, {})[own] = [theirs, take]

    levels = len(config["block_out_channels"])
    each = config["layers_per_block"] + 1
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }
    for own in load_file(folder / "unet/diffusion_pytorch_model.safetensors"):
        parts = own.split(".")
        if parts[0] in ("down_blocks", "up_blocks"):
            down, level, kind, number = parts[0] == "down_blocks", int(parts[1]), parts[2], int(parts[3])
            side, first = ("input_blocks", 1) if down else ("output_blocks", 0)
            attention = "CrossAttn" in config["down_block_types" if down else "up_block_types"][level]
            if kind == "resnets":
                rest = f"{first + level * each + number}.0.{resnet[parts[4]]}.{parts[5]}"
            elif kind == "attentions":
                rest = f"{first + level * each + number}.1." + ".".join(parts[4:])
            elif down:
                rest = f"{first + level * each + each - 1}.0.op.{parts[5]}"
            else:
                rest = f"{level * each + each - 1}.{2 if attention else 1}.conv.{parts[5]}"
            add("unet", own, f"model.diffusion_model.{side}.{rest}")
        elif parts[0] == "mid_block":
            if parts[1] == "resnets":
                rest = f"{2 * int(parts[2])}.{resnet[parts[3]]}.{parts[4]}"
            else:
                rest = "1." + ".".join(parts[3:])
            add("unet", own, f"model.diffusion_model.middle_block.{rest}")
        else:
            theirs = single_file_utils.DIFFUSERS_TO_LDM_MAPPING["unet"]
            add("unet", own, "model.diffusion_model." + (theirs["layers"] | theirs["addition_embed_type"])[own])
    levels = len(json.loads((folder / "vae/config.json").read_text())["block_out_channels"])
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
    for own in load_file(folder / "vae/diffusion_pytorch_model.safetensors"):
        parts = own.split(".")
        name = {"conv_shortcut": "nin_shortcut"}
        if "down_blocks" in own or "up_blocks" in own:
            level = int(parts[2]) if "down_blocks" in own else levels - 1 - int(parts[2])
            side = f"{parts[0]}.{'down' if 'down_blocks' in own else 'up'}.{level}"
            if parts[3] == "resnets":
                rest = f"{side}.block.{parts[4]}.{name.get(parts[5], parts[5])}.{parts[6]}"
            else:
                rest = f"{side}.{parts[3].removesuffix('rs').removesuffix('e')}e.conv.{parts[6]}"
                rest = rest.replace("downsamplee", "downsample").replace("upsamplee", "upsample")
        elif "mid_block.resnets" in own:
            rest = f"{parts[0]}.mid.block_{int(parts[3]) + 1}.{name.get(parts[4], parts[4])}.{parts[5]}"
        elif "mid_block" in own:
            rest = f"{parts[0]}.mid.attn_1.{attention[parts[4]]}.{parts[-1]}"
        else:
            rest = single_file_utils.DIFFUSERS_TO_LDM_MAPPING["vae"][own]
        add("vae", own, f"first_stage_model.{rest}")
    if clip_first:
        for own in load_file(folder / "text_encoder/model.safetensors"):
            add("text_encoder", own, f"{clip_first}{own}")
    block = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
    for own in load_file(folder / "text_encoder_2/model.safetensors"):
        parts = own.split(".")
        take = "whole"
        if "layers" in parts:
            if parts[4] == "self_attn" and parts[5] != "out_proj":
                take, rest = "qkv".index(parts[5][0]), f"attn.in_proj_{parts[6]}"
            elif parts[4] == "self_attn":
                rest = f"attn.out_proj.{parts[6]}"
            else:
                rest = f"{block[parts[-2]]}.{parts[-1]}"
            theirs = f"transformer.resblocks.{parts[3]}.{rest}"
        else:
            theirs = single_file_utils.DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"][own]
            take = "turned" if own.startswith("text_projection") else take
        add("text_encoder_2", own, f"{clip_second}{theirs}", take)
    return names


def write_single(folder, names):
    """The checkpoint's tensors."""
    files = {
        "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
        "text_encoder_2": "model",
    }
    whole, thirds = {}, {}
    for component, table in names.items():
        tensors = load_file(folder / component / f"{files[component]}.safetensors")
        for own, (theirs, take) in table.items():
            tensor = tensors[own]
            if component == "vae" and "attn_1" in theirs and tensor.dim() == 2:
                tensor = tensor[:, :, None, None]
            if take == "turned":
                tensor = tensor.T.contiguous()
            if take in (0, 1, 2):
                thirds.setdefault(theirs, {})[take] = tensor
            else:
                whole[theirs] = tensor
    for theirs, parts in thirds.items():
        whole[theirs] = torch.cat([parts[n] for n in range(3)])
    return whole


def names():
    table = {}
    for shape, folder, first, second in (
        ("sdxl-tiny", base, "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
        ("sdxl-tiny-refiner", refiner, None, "conditioner.embedders.0.model."),
    ):
        config = json.loads((folder / "unet/config.json").read_text())
        table[shape] = single_file(folder, config, first, second)
        whole = write_single(folder, table[shape])
        if len(sys.argv) > 3:
            save_file(whole, Path(sys.argv[3]) / f"{shape}.safetensors")
        vae_config = json.loads((folder / "vae/config.json").read_text())
        back = {
            "unet": single_file_utils.convert_ldm_unet_checkpoint(dict(whole), config),
            "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(whole), vae_config),
        }
        clip = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        # The converter cuts q, k and v by the projection's width, which is the hidden one in the true shape only.
        cut = {k: v for k, v in whole.items() if "in_proj" not in k and not k.endswith("text_projection")}
        back["text_encoder_2"] = single_file_utils.convert_open_clip_checkpoint(clip, cut, prefix=second)
        for component, converted in back.items():
            stem = "model" if component == "text_encoder_2" else "diffusion_pytorch_model"
            tensors = load_file(folder / component / f"{stem}.safetensors")
            for own, tensor in tensors.items():
                taken = table[shape][component][own][1]
                if taken == "whole":
                    assert torch.equal(converted[own], tensor), (component, own)
    (here / "names.json.gz").write_bytes(gzip.compress(json.dumps(table).encode(), mtime=0))


with torch.no_grad():
    clips()
    unets()
    vaes()
names()
kinds = {name: torch.uint32 if name in ("ids1", "ids2") else torch.float32 for name in golden}
golden = {name: tensor.to(kinds[name]).contiguous() for name, tensor in golden.items()}
save_file(golden, here / "nets.safetensors")
print(sum(tensor.nbytes for tensor in golden.values()), "bytes")
