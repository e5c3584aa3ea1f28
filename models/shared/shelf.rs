//! What a net's layers hold on a GPU, by the names that its reader gives them: remembered while they are read, so that all of it can
//! be copied to the host; and handed out in place of reading when the copy has come back. It holds no memory of its own but
//! handles, and lies beside the net, so that both go together. Refuses to know nets and files.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Conv2d, ConvShape, Dense, HostTensors, LayerTensors};
use prediction::PredictError;

pub struct Shelf {
    /// Something to remember, or not.
    keeps: bool,
    device: Device,
    /// What has come back and nobody asked for yet.
    back: RefCell<HashMap<String, Held>>,
    held: RefCell<Vec<(String, Held)>>,
}

enum Held {
    Layer(LayerTensors),
    /// Numbers of the host's.
    Values(Vec<f32>),
}

/// A shelf's tensors, in the host's memory.
pub struct Copied {
    /// Every name with its values, or with how many weights it has and whether a bias follows.
    names: Vec<(String, Left)>,
    tensors: HostTensors,
}

enum Left {
    Layer { weights: usize, bias: bool },
    Values(Vec<f32>),
}

impl Shelf {
    /// For a net that is read. What is not on a GPU is not remembered: there the host's memory is the device's.
    pub fn new(device: &Device) -> Self {
        Self { keeps: op::launches(device), ..Self::forgetful(device) }
    }

    /// For a net that is never kept.
    pub fn forgetful(device: &Device) -> Self {
        Self { keeps: false, device: device.clone(), back: RefCell::default(), held: RefCell::default() }
    }

    /// For a net that has come back: everything is on the device again.
    pub fn returned(copied: Copied, device: &Device) -> Result<Self> {
        let mut tensors = copied.tensors.restore()?.into_iter();
        let mut next = || tensors.next().ok_or_else(|| candle_core::Error::msg("a copy without its last tensors"));
        let mut back = HashMap::with_capacity(copied.names.len());
        for (name, left) in copied.names {
            let held = match left {
                Left::Values(values) => Held::Values(values),
                Left::Layer { weights, bias } => Held::Layer(LayerTensors {
                    weights: (0..weights).map(|_| next()).collect::<Result<_>>()?,
                    bias: bias.then(&mut next).transpose()?,
                }),
            };
            back.insert(name, held);
        }
        Ok(Self { back: RefCell::new(back), ..Self::new(device) })
    }

    /// Page-locked memory that `copied` takes; 0 where there is nothing to keep.
    pub fn kept_bytes(&self) -> u64 {
        op::kept_bytes(self.held.borrow().iter().flat_map(|(_, held)| held.tensors()))
    }

    /// Copies all that was remembered.
    pub fn copied(&self) -> Result<Copied> {
        let held = self.held.borrow();
        let tensors: Vec<&Tensor> = held.iter().flat_map(|(_, held)| held.tensors()).collect();
        let left = |held: &Held| match held {
            Held::Layer(LayerTensors { weights, bias }) => Left::Layer { weights: weights.len(), bias: bias.is_some() },
            Held::Values(values) => Left::Values(values.clone()),
        };
        let names = held.iter().map(|(name, held)| (name.clone(), left(held))).collect();
        Ok(Copied { names, tensors: HostTensors::of(&self.device, &tensors)? })
    }

    /// The layer of this name that has come back, or one that is read.
    pub fn dense(
        &self,
        name: String,
        pool: &Arc<Pool>,
        read: impl FnOnce() -> std::result::Result<Dense, PredictError>,
    ) -> std::result::Result<Dense, PredictError> {
        self.layer(name, |tensors| Dense::of_tensors(tensors, pool), read, Dense::tensors)
    }

    pub fn conv(
        &self,
        name: String,
        shape: ConvShape,
        read: impl FnOnce() -> std::result::Result<Conv2d, PredictError>,
    ) -> std::result::Result<Conv2d, PredictError> {
        self.layer(name, |tensors| Conv2d::of_tensors(tensors, shape), read, Conv2d::tensors)
    }

    pub fn tensor(
        &self,
        name: String,
        read: impl FnOnce() -> std::result::Result<Tensor, PredictError>,
    ) -> std::result::Result<Tensor, PredictError> {
        let only = |mut tensors: LayerTensors| {
            tensors.weights.pop().ok_or_else(|| candle_core::Error::msg("a copy of no tensor"))
        };
        self.layer(name, only, read, |tensor| Some(LayerTensors::single(tensor.clone())))
    }

    pub fn values(
        &self,
        name: String,
        read: impl FnOnce() -> std::result::Result<Vec<f32>, PredictError>,
    ) -> std::result::Result<Vec<f32>, PredictError> {
        // Released before anything is read.
        let back = self.back.borrow_mut().remove(&name);
        let values = match back {
            Some(Held::Values(values)) => values,
            _ => read()?,
        };
        if self.keeps {
            self.held.borrow_mut().push((name, Held::Values(values.clone())));
        }
        Ok(values)
    }

    fn layer<T>(
        &self,
        name: String,
        made: impl FnOnce(LayerTensors) -> Result<T>,
        read: impl FnOnce() -> std::result::Result<T, PredictError>,
        tensors: impl FnOnce(&T) -> Option<LayerTensors>,
    ) -> std::result::Result<T, PredictError> {
        // Released before anything is read.
        let back = self.back.borrow_mut().remove(&name);
        let layer = match back {
            Some(Held::Layer(tensors)) => {
                made(tensors).map_err(|error| PredictError::Operator(format!("the copy of {name}: {error}")))?
            }
            _ => read()?,
        };
        if self.keeps
            && let Some(tensors) = tensors(&layer)
        {
            self.held.borrow_mut().push((name, Held::Layer(tensors)));
        }
        Ok(layer)
    }
}

impl Held {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let layer = match self {
            Self::Layer(layer) => Some(layer),
            Self::Values(_) => None,
        };
        layer.into_iter().flat_map(LayerTensors::iter)
    }
}

impl Copied {
    /// Page-locked memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.tensors.bytes()
    }
}
