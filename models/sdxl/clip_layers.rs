//! The layers that both sides of a CLIP are made of: attention over a sequence, then two dense layers, each behind a norm and
//! with what goes past it added. Refuses to know what a sequence stands for.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use kernels::Pool;
use kernels::op::{self, Dense, MemoryShape, Scene};
use prediction::PredictError;

use super::config::Tower;
use super::layers::{self, Norm};
use super::reader::Reader;

/// What a position of a sequence looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Itself and what stands before it.
    Before,
    Everything,
}

/// A tower's layers, in their order.
pub struct Layers {
    all: Vec<Layer>,
    tower: Tower,
    sight: Sight,
    shape: MemoryShape,
    device: Device,
    pool: Arc<Pool>,
}

struct Layer {
    norm1: Norm,
    /// Queries, keys and values, stacked.
    qkv: Dense,
    out: Dense,
    norm2: Norm,
    up: Dense,
    down: Dense,
}

impl Layers {
    /// For sequences of at most so many positions. `reader` stands where the tower does.
    pub fn load(
        tower: Tower,
        positions: usize,
        sight: Sight,
        reader: &Reader,
    ) -> std::result::Result<Self, PredictError> {
        let Tower { hidden, inner, .. } = tower;
        let layer = |n: usize| {
            let at = reader.at(format!("encoder.layers.{n}"));
            let attention = at.at("self_attn");
            Ok(Layer {
                norm1: at.norm("layer_norm1", hidden)?,
                qkv: attention.stack(&["q_proj", "k_proj", "v_proj"], hidden, hidden, true)?,
                out: attention.dense("out_proj", hidden, hidden)?,
                norm2: at.norm("layer_norm2", hidden)?,
                up: at.dense("mlp.fc1", inner, hidden)?,
                down: at.dense("mlp.fc2", hidden, inner)?,
            })
        };
        Ok(Self {
            all: (0..tower.layers).map(layer).collect::<std::result::Result<_, PredictError>>()?,
            shape: layers::heads(positions, hidden, tower.heads)?,
            tower,
            sight,
            device: reader.load.device.clone(),
            pool: reader.load.pool.clone(),
        })
    }

    /// `[batch * positions, hidden]` through some of the layers, in its own type: as many sequences of one length, one behind
    /// the other.
    pub fn forward(&self, x: &Tensor, batch: usize, which: Range<usize>) -> Result<Tensor> {
        let shape = MemoryShape { positions: x.dim(0)? / batch, ..self.shape };
        let own = Scene::new(shape, batch, &self.device, &self.pool)?;
        let mut own = if self.sight == Sight::Before { own.causal() } else { own };
        let mut x = x.clone();
        for layer in &self.all[which] {
            x = layer.forward(&x, &mut own, self)?;
        }
        Ok(x)
    }

    pub fn bytes(&self) -> u64 {
        self.all.iter().map(|l| l.qkv.bytes() + l.out.bytes() + l.up.bytes() + l.down.bytes()).sum()
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, own: &mut Scene, tower: &Layers) -> Result<Tensor> {
        let Tower { hidden, norm_eps, quick_gelu, .. } = tower.tower;
        let qkv = self.qkv.forward(&self.norm1.layer(x, norm_eps, &tower.pool)?)?;
        own.show(&qkv.narrow(1, hidden, 2 * hidden)?)?;
        let seen = own.attend(&qkv.narrow(1, 0, hidden)?, layers::scale(tower.shape))?;
        let x = self.out.forward_add(&seen, x)?;
        let y = self.norm2.layer(&x, norm_eps, &tower.pool)?;
        let y = match quick_gelu {
            true => op::quick_gelu(&self.up.forward(&y)?, &tower.pool)?,
            false => self.up.forward_gelu(&y)?,
        };
        self.down.forward_add(&y, &x)
    }
}
