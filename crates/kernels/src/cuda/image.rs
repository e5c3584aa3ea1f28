//! Calls of what image networks do between products (`crates/kernels/cuda/image.cuh` has the floors). Refuses to know networks.

use super::call::{Call, Real};
use super::params::{self, Ptr};

const THREADS: usize = 256;
/// Values that one thread takes at once: widths and channels are multiples of it.
pub const UNIT: usize = 8;
/// The widest row of a layer norm.
pub const MOST_WIDTH: usize = 2048;
/// The most groups and channels of a group norm: their sums lie in shared memory.
pub const MOST_CHANNELS: usize = 4096;
const MOST_GROUPS: usize = 1024;
/// Pixels whose sums are taken by one block, at least, and how many such runs an image has at most: every block of the second
/// pass reads all of them.
const RUN_PIXELS: usize = 16;
const MOST_RUNS: usize = 128;
/// Blocks of an image in the second pass, at most, and their pixels, at least.
const SHARES: usize = 256;
const SHARE_PIXELS: usize = 16;

/// What a group norm is over.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub groups: usize,
    pub eps: f32,
    /// SiLU behind the norm.
    pub silu: bool,
}

impl Groups {
    fn run(&self) -> usize {
        self.pixels.div_ceil(MOST_RUNS).max(RUN_PIXELS)
    }

    fn runs(&self) -> usize {
        self.pixels.div_ceil(self.run())
    }

    /// Bytes of what the first pass leaves for the second.
    pub fn partial_bytes(&self) -> usize {
        self.images * self.runs() * self.groups * 2 * 4
    }

    /// Whether there is a kernel for it.
    pub fn fit(&self) -> bool {
        let Groups { images, pixels, channels, groups, .. } = *self;
        let some = images > 0 && pixels > 0 && groups > 0 && channels > 0 && channels.is_multiple_of(groups);
        some && channels.is_multiple_of(UNIT) && channels <= MOST_CHANNELS && groups <= MOST_GROUPS
    }
}

/// `y = silu((x - mean) / sqrt(variance + eps) * weight + bias)` over each image's pixels and each group's neighbouring channels, or
/// without SiLU: two calls, one after the other. `x` and `y` are `[images, pixels, channels]`, `weight` and `bias` f32 `[channels]`.
pub fn group_norm(real: Real, over: &Groups, x: Ptr, (weight, bias): (Ptr, Ptr), partial: Ptr, y: Ptr) -> [Call; 2] {
    assert!(over.fit(), "a group norm of {over:?}");
    let Groups { images, pixels, channels, groups, eps, silu } = *over;
    let int = |v: usize| v as i32;
    let (run, runs) = (over.run(), over.runs());
    let sums = params::GroupSums {
        x,
        partial,
        pixels: int(pixels),
        channels: int(channels),
        groups: int(groups),
        run: int(run),
    };
    let share = pixels.div_ceil(SHARES).max(SHARE_PIXELS);
    let apply = params::GroupApply {
        x,
        weight,
        bias,
        partial,
        y,
        pixels: int(pixels),
        channels: int(channels),
        groups: int(groups),
        runs: int(runs),
        run: int(run),
        share: int(share),
        silu: i32::from(silu),
        eps,
    };
    let (name, threads) = (real.name(), THREADS as u32);
    // Of every thread eight sums and eight sums of squares, of every channel one of each.
    let sums_bytes = (16 * THREADS + 2 * channels) * 4;
    [
        Call::new(format!("group_sums_{name}"), [runs as u32, images as u32, 1], threads, sums_bytes, sums),
        Call::new(
            format!("group_apply_{name}"),
            [pixels.div_ceil(share) as u32, images as u32, 1],
            threads,
            groups * 2 * 4,
            apply,
        ),
    ]
}

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias` over each of `rows` rows of `width`, those of `x` `stride` values apart;
/// `weight` and `bias` are f32.
pub fn layer_norm(
    real: Real,
    (x, stride): (Ptr, usize),
    (rows, width): (usize, usize),
    (weight, bias): (Ptr, Ptr),
    eps: f32,
    y: Ptr,
) -> Call {
    assert!(width > 0 && width <= MOST_WIDTH && width.is_multiple_of(UNIT), "rows of {width}");
    assert!(stride >= width && (stride * real.bytes()).is_multiple_of(16), "rows of {width}, {stride} apart");
    let (rows_, width_, stride_) = (rows as i32, width as i32, stride as i32);
    let params = params::LayerNorm { x, weight, bias, y, rows: rows_, width: width_, stride: stride_, eps };
    let grid = [rows.div_ceil(THREADS / 32) as u32, 1, 1];
    Call::new(format!("layer_norm_{}", real.name()), grid, THREADS as u32, 0, params)
}

/// What is done to a product's sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    /// By the error function.
    Gelu,
    /// Rows are values, then their gates: `value * gelu(gate)`, half as wide.
    Geglu,
}

/// What is added to it: a bias before the activation, f32, as wide as the product; a shift of the row's image before it, f32
/// `[images, width]`, its address, the distance of its rows and the rows of an image; a residual behind it, of the product's type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added {
    pub bias: Option<Ptr>,
    pub shift: Option<(Ptr, usize, usize)>,
    pub residual: Option<Ptr>,
}

/// `y = activation(x + bias + shift) + residual`; `width` is that of `y`, which may be `x` unless the activation halves the width.
pub fn finish(
    real: Real,
    activation: Activation,
    x: Ptr,
    (rows, width): (usize, usize),
    added: &Added,
    y: Ptr,
) -> Call {
    assert!(width > 0 && width.is_multiple_of(UNIT), "rows of {width}");
    let Added { bias, shift, residual } = *added;
    assert!(activation != Activation::Geglu || shift.is_none(), "a gate has no shift");
    let (shift, shift_stride, rows_each) = shift.unwrap_or((Ptr::NONE, width, rows.max(1)));
    assert!(shift_stride.is_multiple_of(4) && rows_each > 0, "shifts {shift_stride} apart for {rows_each} rows");
    let none = |ptr: Option<Ptr>| ptr.unwrap_or(Ptr::NONE);
    let params = params::Finish {
        x,
        bias: none(bias),
        residual: none(residual),
        shift,
        y,
        rows: rows as i32,
        width: width as i32,
        rows_each: rows_each as i32,
        shift_stride: shift_stride as i32,
    };
    let kind = match activation {
        Activation::None => "",
        Activation::Gelu => "gelu_",
        Activation::Geglu => "geglu_",
    };
    let grid = [(rows * width / UNIT).div_ceil(THREADS) as u32, 1, 1];
    Call::new(format!("finish_{kind}{}", real.name()), grid, THREADS as u32, 0, params)
}

/// How a convolution walks over images of `height` x `width` pixels of `pixel_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    pub height: usize,
    pub width: usize,
    pub pixel_bytes: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Zeros above and left of the image.
    pub top: usize,
    pub left: usize,
    /// Height and width of the result.
    pub rows: usize,
    pub columns: usize,
    /// Every pixel of the image counts four times: it is taken as twice as high and wide.
    pub doubled: bool,
}

impl Walk {
    /// Bytes of one window.
    pub fn window_bytes(&self) -> usize {
        self.kernel * self.kernel * self.pixel_bytes
    }
}

/// The windows of `count` pixels of the result from `first` on, counted over all images: `[count, kernel * kernel, pixel]`.
pub fn columns(walk: &Walk, x: Ptr, (first, count): (usize, usize), y: Ptr) -> Call {
    let Walk { height, width, pixel_bytes, kernel, stride, top, left, rows, columns, doubled } = *walk;
    let bytes = if pixel_bytes.is_multiple_of(16) && x.0.is_multiple_of(16) { 16 } else { 2 };
    let units = pixel_bytes / bytes;
    assert!(pixel_bytes.is_multiple_of(2) && count * kernel * kernel * units < 1 << 31, "{count} windows of {walk:?}");
    let int = |v: usize| v as i32;
    let params = params::Columns {
        x,
        y,
        height: int(height),
        width: int(width),
        units: int(units),
        kernel: int(kernel),
        stride: int(stride),
        top: int(top),
        left: int(left),
        rows: int(rows),
        columns: int(columns),
        doubled: i32::from(doubled),
        first: int(first),
        count: int(count),
    };
    let grid = [(count * kernel * kernel * units).div_ceil(THREADS) as u32, 1, 1];
    Call::new(format!("columns_{bytes}"), grid, THREADS as u32, 0, params)
}
