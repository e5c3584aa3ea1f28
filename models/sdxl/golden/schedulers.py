"""What diffusers' schedulers say, for tests/schedulers.rs: timesteps and sigmas for several numbers of steps, and the samples
that 20 steps lead to on given outputs of a net, also begun in the middle.

    python schedulers.py        # writes schedulers.safetensors beside itself; versions in requirements.txt

A tensor is called CONFIGURATION/SCHEDULER/WHAT; the configurations, as from_config reads them, are in the metadata.
"""

import json
import os

import diffusers
import numpy
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = 20
SHAPE = (1, 4, 2, 3)
# Of SDXL 1.0, and what else may stand in such a file.
SDXL = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
}
CONFIGURATIONS = {
    "sdxl": SDXL,
    "velocity": {**SDXL, "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    # Everything absent is what each class takes by default.
    "bare": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"},
    "other": {
        **SDXL, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace", "use_karras_sigmas": True,
        "final_sigmas_type": "sigma_min", "clip_sample": True, "clip_sample_range": 2.0, "prediction_type": "v_prediction",
        "solver_order": 1,
    },
}
SCHEDULERS = {
    "DDIM": (diffusers.DDIMScheduler, {}),
    "DPMSolverMultistep": (diffusers.DPMSolverMultistepScheduler, {}),
    "HeunDiscrete": (diffusers.HeunDiscreteScheduler, {}),
    "KarrasDPM": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "K_EULER_ANCESTRAL": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "K_EULER": (diffusers.EulerDiscreteScheduler, {}),
    "PNDM": (diffusers.PNDMScheduler, {}),
}


def run(scheduler, first, outputs, noise, sample):
    """The samples after each step from the timestep number `first` on."""
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    samples = []
    for at, timestep in enumerate(scheduler.timesteps[first:]):
        scheduler.scale_model_input(sample, timestep)
        with given(noise[at]):
            sample = scheduler.step(outputs[at], timestep, sample).prev_sample
        samples.append(sample)
    return torch.stack(samples)


class given:
    """The noise that a step draws is this."""

    def __init__(self, noise):
        self.noise = noise

    def __enter__(self):
        module = diffusers.schedulers.scheduling_euler_ancestral_discrete
        self.kept = module.randn_tensor
        module.randn_tensor = lambda *_, **__: self.noise

    def __exit__(self, *_):
        diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor = self.kept


def main():
    generator = torch.Generator().manual_seed(20261123)
    calls = 3 * STEPS
    outputs = torch.randn((calls, *SHAPE), generator=generator)
    noise = torch.randn((calls, *SHAPE), generator=generator)
    start = torch.randn(SHAPE, generator=generator)
    tensors = {"outputs": outputs, "noise": noise, "start": start}
    for config_name, config in CONFIGURATIONS.items():
        for name, (kind, more) in SCHEDULERS.items():
            def new():
                return kind.from_config(dict(config), **more)

            prefix = f"{config_name}/{name}"
            for steps in [1, 2, 3, STEPS, 50] + ([500] if config_name == "sdxl" else []):
                scheduler = new()
                try:
                    scheduler.set_timesteps(steps)
                except ValueError as error:
                    print(f"{prefix}: {steps} steps: {error}")
                    continue
                tensors[f"{prefix}/{steps}/timesteps"] = scheduler.timesteps.to(torch.float64)
                if hasattr(scheduler, "sigmas"):
                    tensors[f"{prefix}/{steps}/sigmas"] = scheduler.sigmas.to(torch.float32)
            scheduler = new()
            scheduler.set_timesteps(STEPS)
            scale = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float32)
            tensors[f"{prefix}/init_noise_sigma"] = scale.reshape(1)
            scaled = scheduler.scale_model_input(start, scheduler.timesteps[0])
            tensors[f"{prefix}/input"] = scaled.clone()
            tensors[f"{prefix}/samples"] = run(new(), 0, outputs, noise, start * scale)
            # As image-to-image begins at a strength of 0.6.
            first = 8 * scheduler.order
            scheduler = new()
            scheduler.set_timesteps(STEPS)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first)
            noised = scheduler.add_noise(start, noise[-1], scheduler.timesteps[first : first + 1])
            tensors[f"{prefix}/noised"] = noised
            tensors[f"{prefix}/late"] = run(new(), first, outputs, noise, noised)
    about = {name: json.dumps(config) for name, config in CONFIGURATIONS.items()}
    about["made_with"] = f"diffusers {diffusers.__version__}, torch {torch.__version__}, numpy {numpy.__version__}"
    for name, tensor in tensors.items():
        assert torch.isfinite(tensor).all(), name
    tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, os.path.join(HERE, "schedulers.safetensors"), metadata=about)


if __name__ == "__main__":
    main()
