//! A UNet that was trained as a whole: it takes the base's place tensor by tensor while a net is read, in the precision of
//! what it replaces. A tensor that it has not stays the base's, as in the reference. Refuses what is for another
//! architecture, from headers alone.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prediction::PredictError;
use runner::SafeTensors;
use runner::safetensors::Tensor;

use super::weights::{Adapter, Component, Opened};
use crate::shared::raw::Raw;

/// Every UNet has it, and no adapter of one.
const FIRST: &str = "conv_in.weight";

pub struct Whole {
    /// As messages call it.
    file: String,
    /// By diffusers' names.
    tensors: SafeTensors,
}

impl Whole {
    /// Whether a file holds a UNet.
    pub fn is_in(tensors: &SafeTensors) -> bool {
        tensors.has(FIRST)
    }

    pub fn new(file: &str, tensors: SafeTensors) -> Self {
        Self { file: file.to_owned(), tensors }
    }

    /// Refuses tensors that this UNet has not, or has in another shape.
    pub fn fit(&self, opened: &Opened) -> Result<(), PredictError> {
        let known = BTreeMap::from_iter(opened.tensors(Component::Unet)?);
        for name in self.tensors.names() {
            let tensor = self.tensors.tensor(name).map_err(|error| self.refuse(&error))?;
            let raw = Raw::new(name, tensor.dtype, tensor.shape, Cow::Borrowed(tensor.bytes));
            let shape = raw.map_err(|error| self.refuse(&error))?.shape;
            let Some(needed) = known.get(name) else {
                return Err(self.refuse(&format_args!("this model has no {name}: it is for another architecture")));
            };
            if shape != *needed {
                let why = format_args!("{name} is {shape:?}, not {needed:?}: it is for another architecture");
                return Err(self.refuse(&why));
            }
        }
        Ok(())
    }

    fn refuse(&self, why: &dyn std::fmt::Display) -> PredictError {
        PredictError::FixInput(format!("the UNet {}: {why}", self.file))
    }
}

impl Adapter for &Whole {
    fn touches(&self, _: Component, _: &str) -> bool {
        false
    }

    fn add(&self, _: Component, _: &str, _: &[usize], _: &mut [f32]) -> Result<(), PredictError> {
        Ok(())
    }

    fn instead(&self, component: Component, name: &str) -> Option<Tensor<'_>> {
        self.tensors.tensor(name).ok().filter(|_| component == Component::Unet)
    }

    fn done(&self, component: Component, name: &str) {
        if component == Component::Unet {
            self.tensors.advise_drop(name);
        }
    }
}
