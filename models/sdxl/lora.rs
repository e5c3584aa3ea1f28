//! Low-rank changes of weights ("LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021) from safetensors, as
//! kohya's scripts, diffusers, peft and cog-sdxl's trainer write them.
//!
//! They are added to the weights while a net is loaded: `weight + scale * alpha / rank * up x down`. That costs no memory
//! and no time per step, and another LoRA is another load of the net. Refuses what fits no weight, with the module's name
//! and both shapes: a LoRA for another architecture.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prediction::PredictError;
use runner::safetensors::SafeTensors;

/// The nets that a LoRA may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Unet,
    TextEncoder,
    TextEncoder2,
}

/// How a file's names say which net a module belongs to; the longest that fits counts. cog-sdxl's trainer writes none.
const PREFIXES: [(&str, Part); 11] = [
    ("lora_unet_", Part::Unet),
    ("unet.", Part::Unet),
    ("base_model.model.unet.", Part::Unet),
    ("diffusion_model.", Part::Unet),
    ("", Part::Unet),
    ("lora_te1_", Part::TextEncoder),
    ("lora_te_", Part::TextEncoder),
    ("text_encoder.", Part::TextEncoder),
    ("te1.", Part::TextEncoder),
    ("lora_te2_", Part::TextEncoder2),
    ("text_encoder_2.", Part::TextEncoder2),
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
    modules: BTreeMap<(Part, String), Module>,
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

/// The changes of one net's weights.
#[derive(Default)]
pub struct Deltas {
    by_weight: BTreeMap<String, Delta>,
}

struct Delta {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl Lora {
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let tensors = SafeTensors::open(path).map_err(|error| PredictError::FixInput(error.text().to_owned()))?;
        let mut this = Self { file, modules: BTreeMap::new() };
        for name in tensors.names() {
            this.take(&tensors, name)?;
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
        let entry = self.modules.entry((*part, flat)).or_default();
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
    pub fn changes(&self, part: Part) -> bool {
        self.modules.keys().any(|(other, _)| *other == part)
    }

    /// The changes of one net, whose weights have these names and shapes; the names as diffusers has them or as the original
    /// checkpoint has, with the one that the net is loaded by. `scale` is the user's.
    pub fn fit<'a>(
        &self,
        part: Part,
        weights: impl Iterator<Item = (&'a str, &'a [usize])>,
        aliases: &dyn Fn(&str) -> Option<String>,
        scale: f64,
    ) -> Result<Deltas, PredictError> {
        let mut known: BTreeMap<String, (&str, &[usize])> = BTreeMap::new();
        for (name, shape) in weights {
            let names = [Some(name.to_owned()), aliases(name)];
            for module in names.iter().flatten().filter_map(|name| name.strip_suffix(".weight")) {
                let flat = module.replace('.', "_");
                // An output projection is the first of a list that diffusers' processors do not name.
                if let Some(first) = flat.strip_suffix("to_out_0") {
                    known.insert(format!("{first}to_out"), (name, shape));
                }
                known.insert(flat, (name, shape));
            }
        }
        let mut deltas = Deltas::default();
        for ((_, flat), module) in self.modules.iter().filter(|((other, _), _)| *other == part) {
            let Some((weight, shape)) = known.get(flat) else {
                return Err(self.refuse(&format_args!(
                    "{} changes nothing that this model has; it is for another architecture",
                    module.name
                )));
            };
            let delta = module.fit(shape, scale).map_err(|why| self.refuse(&why))?;
            deltas.by_weight.insert((*weight).to_owned(), delta);
        }
        Ok(deltas)
    }

    fn refuse(&self, why: &dyn std::fmt::Display) -> PredictError {
        PredictError::FixInput(format!("the LoRA {}: {why}", self.file))
    }
}

impl Module {
    fn fit(&self, weight: &[usize], scale: f64) -> Result<Delta, String> {
        let (Some(down), Some(up)) = (&self.down, &self.up) else {
            return Err(format!("{} has only one of its two matrices", self.name));
        };
        let per_row = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
        let (rank, out) = (down.dims().first().copied().unwrap_or(0), up.dims().first().copied().unwrap_or(0));
        let fits = rank > 0
            && per_row(up.dims()) == rank
            && weight.first() == Some(&out)
            && per_row(weight) == per_row(down.dims());
        if !fits {
            return Err(format!(
                "{} is {:?} times {:?}, and the weight it is for is {weight:?}; it is for another architecture",
                self.name,
                up.dims(),
                down.dims()
            ));
        }
        let scale = scale * self.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        Ok(Delta { down: down.clone(), up: up.clone(), scale })
    }
}

impl Deltas {
    pub fn is_empty(&self) -> bool {
        self.by_weight.is_empty()
    }

    /// The weight of this name with its change, in the precision it came in; as it is where there is none.
    pub fn merge(&self, name: &str, weight: Tensor) -> candle_core::Result<Tensor> {
        let Some(Delta { down, up, scale }) = self.by_weight.get(name) else { return Ok(weight) };
        let rows = |tensor: &Tensor| tensor.flatten_from(1);
        let change = rows(up)?.matmul(&rows(down)?)?.affine(*scale, 0.0)?.reshape(weight.shape())?;
        let change = change.to_device(weight.device())?;
        (weight.to_dtype(DType::F32)? + change)?.to_dtype(weight.dtype())
    }
}

fn read(tensors: &SafeTensors, name: &str) -> Result<Tensor, String> {
    let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
    let values = Tensor::from_raw_buffer(tensor.bytes, tensor.dtype, tensor.shape, &Device::Cpu);
    values.and_then(|values| values.to_dtype(DType::F32)).map_err(|error| format!("{name}: {error}"))
}
