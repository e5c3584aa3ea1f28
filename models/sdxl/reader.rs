//! Tensors to layers: each is found under whichever name the file has for it, checked against the shape that the config
//! needs, changed by an adapter where one touches it, brought to its precision and handed to the kernels. Refuses to know
//! which network it builds.

use std::borrow::Cow;
use std::fmt::Display;

use candle_core::Tensor;
use kernels::op::{Conv2d, ConvShape, Dense, Part};
use prediction::PredictError;

use super::layers::Norm;
use super::original::{self, Place, Take};
use super::weights::{Component, Load, Naming, Opened, Source};
use crate::shared::raw::Raw;

/// Builds layers from the tensors under a prefix.
pub struct Reader<'a> {
    pub(super) opened: &'a Opened,
    pub(super) source: &'a Source,
    pub(super) component: Component,
    pub load: Load<'a>,
    pub(super) prefix: String,
}

impl<'a> Reader<'a> {
    /// What is under `name`.
    pub fn at(&self, name: impl Display) -> Reader<'a> {
        let prefix = format!("{}{name}.", self.prefix);
        Reader { opened: self.opened, source: self.source, component: self.component, load: self.load, prefix }
    }

    /// Where it stands, with a dot at the end unless it is the top.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A dense layer with a bias.
    pub fn dense(&self, name: &str, out: usize, inputs: usize) -> Result<Dense, PredictError> {
        self.stack(&[name], out, inputs, true)
    }

    /// Layers that read the same, one below the other.
    pub fn stack(&self, names: &[&str], out: usize, inputs: usize, biased: bool) -> Result<Dense, PredictError> {
        let read = || self.read_stack(names, out, inputs, biased);
        self.load.shelf.dense(self.key(names[0]), self.load.pool, read)
    }

    fn read_stack(&self, names: &[&str], out: usize, inputs: usize, biased: bool) -> Result<Dense, PredictError> {
        let mut raws = Vec::with_capacity(names.len());
        let mut bias = Vec::new();
        for name in names {
            raws.push(self.matrix(&format!("{name}.weight"), out, inputs)?);
            if biased {
                bias.extend(self.raw(&format!("{name}.bias"))?.of_shape(&[out])?.to_f32());
            }
        }
        let dense = self.finish(&raws, inputs, biased.then_some(bias));
        names.iter().for_each(|name| self.done(&format!("{name}.weight")));
        dense
    }

    /// Layers of several places that read the same, each of its own width.
    pub fn gather(&self, places: &[(String, usize)], inputs: usize) -> Result<Dense, PredictError> {
        let name = places.first().map_or("", |(name, _)| name);
        self.load.shelf.dense(self.key(name), self.load.pool, || self.read_gathered(places, inputs))
    }

    fn read_gathered(&self, places: &[(String, usize)], inputs: usize) -> Result<Dense, PredictError> {
        let mut raws = Vec::with_capacity(places.len());
        let mut bias = Vec::new();
        for (name, out) in places {
            raws.push(self.matrix(&format!("{name}.weight"), *out, inputs)?);
            bias.extend(self.raw(&format!("{name}.bias"))?.of_shape(&[*out])?.to_f32());
        }
        self.finish(&raws, inputs, Some(bias))
    }

    fn finish(&self, raws: &[Raw], inputs: usize, bias: Option<Vec<f32>>) -> Result<Dense, PredictError> {
        let parts: Vec<Part> = raws.iter().map(part).collect();
        Dense::new(&parts, inputs, bias, self.load.device, self.load.pool)
            .map_err(|error| broken(&raws[0].name, &error))
    }

    pub fn conv(&self, name: &str, shape: ConvShape) -> Result<Conv2d, PredictError> {
        self.load.shelf.conv(self.key(name), shape, || self.read_conv(name, shape))
    }

    fn read_conv(&self, name: &str, shape: ConvShape) -> Result<Conv2d, PredictError> {
        let weight = format!("{name}.weight");
        let raw = self.held(&weight)?.of_shape(&[shape.out, shape.in_, shape.kernel, shape.kernel])?;
        let bias = self.raw(&format!("{name}.bias"))?.of_shape(&[shape.out])?.to_f32();
        let conv = Conv2d::new(part(&raw), shape, Some(bias), self.load.device, self.load.pool);
        let conv = conv.map_err(|error| broken(&raw.name, &error));
        self.done(&weight);
        conv
    }

    pub fn norm(&self, name: &str, width: usize) -> Result<Norm, PredictError> {
        let read = |kind: &str| self.tensor(&format!("{name}.{kind}"), &[width]);
        Ok(Norm { weight: read("weight")?, bias: read("bias")? })
    }

    /// In f32, whatever weights are held in: what is added or multiplied value by value.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, PredictError> {
        self.load.shelf.tensor(self.key(name), || {
            let values = self.read_values(name, shape)?;
            Tensor::from_vec(values, shape, self.load.device).map_err(|error| broken(name, &error))
        })
    }

    /// A tensor's numbers, row by row.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, PredictError> {
        self.load.shelf.values(self.key(name), || self.read_values(name, shape))
    }

    fn read_values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, PredictError> {
        Ok(self.raw(name)?.of_shape(shape)?.to_f32())
    }

    /// `[rows, width]` in the precision that weights are held in: what is looked up.
    pub fn table(&self, name: &str, rows: usize, width: usize) -> Result<Tensor, PredictError> {
        self.load.shelf.tensor(self.key(name), || self.read_table(name, rows, width))
    }

    fn read_table(&self, name: &str, rows: usize, width: usize) -> Result<Tensor, PredictError> {
        let raw = self.held(name)?.of_shape(&[rows, width])?;
        let table = Tensor::from_raw_buffer(&raw.bytes, raw.dtype, &[rows, width], self.load.device);
        let table = table.map_err(|error| broken(name, &error));
        self.done(name);
        table
    }

    /// What a layer is called among those of all nets that are read together.
    fn key(&self, name: &str) -> String {
        let (path, part) = (self.opened.path().display(), self.component.folder());
        format!("{path}/{part}/{}{name}", self.prefix)
    }

    /// `[out, inputs]`, also where the file has it as a convolution whose window is all that is read: one pixel, or a patch.
    fn matrix(&self, name: &str, out: usize, inputs: usize) -> Result<Raw<'a>, PredictError> {
        let mut raw = self.held(name)?;
        if raw.shape.len() > 2 && raw.shape[1..].iter().product::<usize>() == inputs {
            raw.shape = vec![raw.shape[0], inputs];
        }
        raw.of_shape(&[out, inputs])
    }

    /// As it will be held, with what the adapter adds.
    fn held(&self, name: &str) -> Result<Raw<'a>, PredictError> {
        let raw = self.raw(name)?;
        let precision = self.load.precision.unwrap_or(raw.dtype);
        let full = format!("{}{name}", self.prefix);
        let Some(adapter) = self.load.adapter.filter(|adapter| adapter.touches(self.component, &full)) else {
            return Ok(raw.converted(precision));
        };
        let mut values = raw.to_f32();
        adapter.add(self.component, &full, &raw.shape, &mut values)?;
        Ok(raw.with_values(&values, precision))
    }

    /// As the file has it, or what the adapter has in its place, in no other precision: memory was reckoned with it.
    fn raw(&self, name: &str) -> Result<Raw<'a>, PredictError> {
        let own = self.own(name)?;
        let full = format!("{}{name}", self.prefix);
        match self.load.adapter.and_then(|adapter| adapter.instead(self.component, &full)) {
            None => Ok(own),
            Some(other) => Raw::new(&full, other.dtype, other.shape, Cow::Borrowed(other.bytes))?
                .of_shape(&own.shape)
                .map(|other| other.converted(own.dtype)),
        }
    }

    /// As the file has it, under whichever of its names it is there.
    fn own(&self, name: &str) -> Result<Raw<'a>, PredictError> {
        let (place, take) = self.place(name);
        let (dtype, shape, bytes) = match self.source {
            Source::Folder(tensors) | Source::Single(tensors, _, _) => {
                let tensor = tensors.tensor(&place)?;
                (tensor.dtype, tensor.shape, Cow::Borrowed(tensor.bytes))
            }
            Source::Synth(synth) => (synth.dtype(), synth.shape(&place)?, Cow::Owned(synth.bytes(&place)?)),
        };
        taken(Raw::new(&place, dtype, shape, bytes)?, take)
    }

    /// What the file calls a tensor.
    fn place(&self, name: &str) -> Place {
        let full = format!("{}{name}", self.prefix);
        match self.source {
            Source::Folder(tensors) => {
                // transformers and diffusers have both renamed tensors: older files, newer files.
                let other = |table: &[(&str, &str)]| {
                    table.iter().fold(full.clone(), |name, (ours, theirs)| name.replace(ours, theirs))
                };
                let names = [other(&NEWER), other(&OLDER)];
                let found = names.into_iter().find(|name| !tensors.has(&full) && tensors.has(name));
                (found.unwrap_or(full), Take::Whole)
            }
            Source::Single(_, prefix, naming) => {
                let place = match naming {
                    Naming::Transformers => None,
                    Naming::OpenClip => original::open_clip(&full),
                    Naming::Unet => original::unet(&full, self.opened.unet_config()),
                    Naming::Vae => original::vae(&full, self.opened.vae_config()),
                };
                let (name, take) = place.unwrap_or((full, Take::Whole));
                (format!("{prefix}{name}"), take)
            }
            Source::Synth(_) => (format!("{}/{}/{full}", self.component.folder(), self.component.stem()), Take::Whole),
        }
    }

    /// The weight is in memory in its own layout: its pages of the file need not be.
    fn done(&self, name: &str) {
        if let Source::Folder(tensors) | Source::Single(tensors, _, _) = self.source {
            tensors.advise_drop(&self.place(name).0);
        }
        if let Some(adapter) = self.load.adapter {
            adapter.done(self.component, &format!("{}{name}", self.prefix));
        }
    }
}

/// A level of each side of a CLIP that transformers has dropped.
const NEWER: [(&str, &str); 2] = [("text_model.", ""), ("vision_model.vision_model.", "vision_model.")];
/// What diffusers called the VAE's attention before.
const OLDER: [(&str, &str); 4] =
    [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")];

fn part<'a>(raw: &'a Raw) -> Part<'a> {
    Part { format: raw.format(), out: raw.shape[0], bytes: &raw.bytes }
}

fn taken(mut raw: Raw, take: Take) -> Result<Raw, PredictError> {
    let size = raw.dtype.size_in_bytes();
    match (take, raw.shape.as_slice()) {
        (Take::Third(third), &[rows, ..]) if rows % 3 == 0 => {
            let part = raw.bytes.len() / 3;
            let range = third * part..(third + 1) * part;
            raw.bytes = match raw.bytes {
                Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
                Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
            };
            raw.shape[0] = rows / 3;
        }
        (Take::Turned, &[rows, columns]) => {
            let at = |to: usize| (to % rows * columns + to / rows) * size;
            raw.bytes = Cow::Owned((0..rows * columns).flat_map(|to| raw.bytes[at(to)..][..size].to_vec()).collect());
            raw.shape = vec![columns, rows];
        }
        (Take::Whole, _) => {}
        (_, shape) => {
            let why = format!("tensor {} is {shape:?}; three matrices, or one, are needed", raw.name);
            return Err(PredictError::Operator(why));
        }
    }
    Ok(raw)
}

fn broken(name: &str, error: &candle_core::Error) -> PredictError {
    PredictError::Operator(format!("tensor {name}: {error}"))
}
