//! Low-rank changes of weights ("LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021) from safetensors, as
//! kohya's scripts, diffusers, peft and cog-sdxl's trainer write them.
//!
//! They are added to the weights while a net is loaded: `weight + scale * alpha / rank * up x down`. That costs no memory
//! and no time per step, and another LoRA is another load of the net. Refuses what fits no weight, with the module's name:
//! a LoRA for another architecture.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use prediction::PredictError;
use runner::SafeTensors;

use super::original;
use super::weights::{Adapter, Component, Opened};

/// How a file's names say which net a module belongs to; the longest that fits counts. cog-sdxl's trainer writes none.
const PREFIXES: [(&str, Component); 11] = [
    ("lora_unet_", Component::Unet),
    ("unet.", Component::Unet),
    ("base_model.model.unet.", Component::Unet),
    ("diffusion_model.", Component::Unet),
    ("", Component::Unet),
    ("lora_te1_", Component::Text1),
    ("lora_te_", Component::Text1),
    ("text_encoder.", Component::Text1),
    ("te1.", Component::Text1),
    ("lora_te2_", Component::Text2),
    ("text_encoder_2.", Component::Text2),
];
const DOWN: [&str; 6] = [
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora.down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
];
const UP: [&str; 6] = [
    ".lora_up.weight",
    ".lora_B.weight",
    ".lora_B.default.weight",
    ".lora.up.weight",
    "_lora.up.weight",
    ".lora_linear_layer.up.weight",
];
const ALPHA: [&str; 1] = [".alpha"];
/// Where diffusers keeps an attention's modules but does not name it so.
const PROCESSOR: &str = ".processor";

/// What a file of low-rank changes holds, by net and by module; a module's name with `_` for every `.`.
pub struct Lora {
    file: String,
    modules: BTreeMap<(&'static str, String), Module>,
}

#[derive(Default)]
struct Module {
    /// As the file calls it, for messages.
    name: String,
    /// `[rank, in]` or `[rank, in, k, k]`, f32.
    down: Option<Tensor>,
    /// `[out, rank]` or `[out, rank, 1, 1]`, f32.
    up: Option<Tensor>,
    alpha: Option<f64>,
}

/// A LoRA that fits a pipeline's weights, for the loading of its nets.
pub struct Fitted<'a> {
    /// By net and by the name of the weight.
    changes: BTreeMap<(&'static str, String), &'a Module>,
    lora: &'a Lora,
    /// The user's.
    scale: f64,
}

impl Lora {
    /// `file` is named in refusals.
    pub fn read(file: &str, tensors: &SafeTensors) -> Result<Self, PredictError> {
        let mut this = Self { file: file.to_owned(), modules: BTreeMap::new() };
        for name in tensors.names() {
            this.take(tensors, name)?;
        }
        if this.modules.is_empty() {
            return Err(this.refuse(&"it has no tensors"));
        }
        match this.modules.values().find(|module| module.down.is_none() || module.up.is_none()) {
            Some(half) => Err(this.refuse(&format_args!("{} has only one of its two matrices", half.name))),
            None => Ok(this),
        }
    }

    fn take(&mut self, tensors: &SafeTensors, name: &str) -> Result<(), PredictError> {
        let cut = |ends: &[&str]| ends.iter().find_map(|end| name.strip_suffix(end));
        let (down, up, alpha) = (cut(&DOWN), cut(&UP), cut(&ALPHA));
        let Some(module) = down.or(up).or(alpha) else {
            return Err(self.refuse(&format_args!("{name} is no low-rank matrix: of the adapters, LoRA alone is read")));
        };
        let fitting = PREFIXES.iter().filter(|(prefix, _)| module.starts_with(prefix));
        let (prefix, part) = fitting.max_by_key(|(prefix, _)| prefix.len()).unwrap_or(&PREFIXES[4]);
        let flat = module[prefix.len()..].replace(PROCESSOR, "").replace('.', "_");
        let values = read(tensors, name).map_err(|error| self.refuse(&error))?;
        let entry = self.modules.entry((part.folder(), flat)).or_default();
        module.clone_into(&mut entry.name);
        if down.is_some() {
            entry.down = Some(values);
        } else if up.is_some() {
            entry.up = Some(values);
        } else {
            let number = values.flatten_all().and_then(|all| all.to_vec1::<f32>());
            let number = number.ok().and_then(|all| all.first().copied());
            entry.alpha = number.map(f64::from);
        }
        Ok(())
    }

    /// Whether it changes this net.
    pub fn changes(&self, component: Component) -> bool {
        self.modules.keys().any(|(other, _)| *other == component.folder())
    }

    /// Finds the weight of every change, and refuses the LoRA if one has none. From headers alone.
    pub fn fit(&self, opened: &Opened, scale: f64) -> Result<Fitted<'_>, PredictError> {
        let mut changes = BTreeMap::new();
        for component in Component::ALL.into_iter().filter(|component| self.changes(*component)) {
            let known = known(opened, component)?;
            for ((folder, flat), module) in &self.modules {
                if *folder != component.folder() {
                    continue;
                }
                let Some((weight, shape)) = known.get(flat) else {
                    let name = &module.name;
                    let why =
                        format_args!("{name} changes nothing that this model has: it is for another architecture");
                    return Err(self.refuse(&why));
                };
                module.check(shape).map_err(|why| self.refuse(&why))?;
                changes.insert((component.folder(), weight.clone()), module);
            }
        }
        Ok(Fitted { changes, lora: self, scale })
    }

    fn refuse(&self, why: &dyn std::fmt::Display) -> PredictError {
        PredictError::FixInput(format!("the LoRA {}: {why}", self.file))
    }
}

/// Weights by the name of their module with `_` for every `.`, as diffusers and as the first implementation calls it.
fn known(opened: &Opened, component: Component) -> Result<BTreeMap<String, (String, Vec<usize>)>, PredictError> {
    let mut known = BTreeMap::new();
    for (weight, shape) in opened.tensors(component)? {
        let original = match component {
            Component::Unet => original::unet(&weight, opened.unet_config()).map(|(name, _)| name),
            _ => None,
        };
        for name in [Some(&weight), original.as_ref()].into_iter().flatten() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let flat = module.replace('.', "_");
            // An output projection is the first of a list, which old names of diffusers' leave out.
            if let Some(before) = flat.strip_suffix("to_out_0") {
                known.insert(format!("{before}to_out"), (weight.clone(), shape.clone()));
            }
            known.insert(flat, (weight.clone(), shape.clone()));
        }
    }
    Ok(known)
}

impl Module {
    /// The two matrices and their rank, if their product has as many rows and columns as a weight of this shape.
    fn matrices(&self, weight: &[usize]) -> Result<(&Tensor, &Tensor, usize), String> {
        let (Some(down), Some(up)) = (&self.down, &self.up) else {
            return Err(format!("{} has only one of its two matrices", self.name));
        };
        let per_row = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
        let rank = down.dims().first().copied().unwrap_or(0);
        let fits = rank > 0
            && per_row(up.dims()) == rank
            && weight.first() == up.dims().first()
            && per_row(weight) == per_row(down.dims());
        if fits {
            return Ok((down, up, rank));
        }
        let (name, up, down) = (&self.name, up.dims(), down.dims());
        Err(format!("{name} is {up:?} times {down:?} for a weight of {weight:?}: it is for another architecture"))
    }

    fn check(&self, weight: &[usize]) -> Result<(), String> {
        self.matrices(weight).map(|_| ())
    }

    /// What it adds to a weight of this shape, row-major.
    fn change(&self, weight: &[usize], scale: f64) -> Result<Vec<f32>, String> {
        let (down, up, rank) = self.matrices(weight)?;
        let scale = scale * self.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        let product =
            || up.flatten_from(1)?.matmul(&down.flatten_from(1)?)?.affine(scale, 0.0)?.flatten_all()?.to_vec1();
        product().map_err(|error: candle_core::Error| format!("{}: {error}", self.name))
    }
}

impl Adapter for Fitted<'_> {
    fn touches(&self, component: Component, name: &str) -> bool {
        self.changes.contains_key(&(component.folder(), name.to_owned()))
    }

    fn add(&self, component: Component, name: &str, shape: &[usize], values: &mut [f32]) -> Result<(), PredictError> {
        let Some(module) = self.changes.get(&(component.folder(), name.to_owned())) else { return Ok(()) };
        let change = module.change(shape, self.scale).map_err(|why| self.lora.refuse(&why))?;
        values.iter_mut().zip(change).for_each(|(value, change)| *value += change);
        Ok(())
    }
}

fn read(tensors: &SafeTensors, name: &str) -> Result<Tensor, String> {
    let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
    let values = Tensor::from_raw_buffer(tensor.bytes, tensor.dtype, tensor.shape, &Device::Cpu);
    values.and_then(|values| values.to_dtype(DType::F32)).map_err(|error| format!("{name}: {error}"))
}
