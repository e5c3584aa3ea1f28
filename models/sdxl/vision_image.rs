//! An image as a CLIP looks at it: its shorter side brought to the net's, its middle cut out, its values normalised. The
//! reference is transformers' `CLIPImageProcessor`, which resizes by Pillow's bicubic filter: to the last bit, since a byte more
//! or less here would move every number behind it. Refuses to know the net.

use prediction::PredictError;
use serde_json::{Value, json};

use super::fields::Fields;
use super::image::Picture;
use super::vision::CHANNELS;

/// OpenAI's, of the images that CLIP was trained with: red, green, blue, 0 to 1.
const MEAN: [f64; CHANNELS] = [0.48145466, 0.4578275, 0.40821073];
const DEVIATION: [f64; CHANNELS] = [0.26862954, 0.26130258, 0.27577711];
/// Of Pillow's fixed-point weights.
const FRACTION_BITS: u32 = 22;
/// Pixels that the cubic reaches to, each way.
const REACH: f64 = 2.0;

/// Refuses a `preprocessor_config.json` that asks for something else than what is done here, for a net of this side.
pub fn check(file: &str, json: &Value, side: usize) -> Result<(), PredictError> {
    const BICUBIC: u8 = 3;
    let fields = Fields { file, json };
    fields.only(&[
        ("do_center_crop", json!(true)),
        ("do_normalize", json!(true)),
        ("do_rescale", json!(true)),
        ("do_resize", json!(true)),
        ("image_mean", json!(MEAN)),
        ("image_std", json!(DEVIATION)),
        ("resample", json!(BICUBIC)),
    ])?;
    for name in ["size", "crop_size"] {
        // A number in older files, in newer ones the shortest edge, or height and width.
        let other = match fields.get(name) {
            Some(Value::Object(sides)) => sides.values().any(|value| *value != side),
            value => value.is_some_and(|value| *value != side),
        };
        if other {
            return Err(fields.refuse(name, &format!("the net looks at {side} x {side} pixels")));
        }
    }
    Ok(())
}

/// `[channels, side, side]`.
pub fn pixels(picture: &Picture, side: usize) -> Vec<f32> {
    let Picture { width, height, .. } = *picture;
    let long = |own: usize, shorter: usize| side * own / shorter;
    let (wide, high) = match width <= height {
        true => (side, long(height, width)),
        false => (long(width, height), side),
    };
    let resized = resize(picture, wide, high);
    let (top, left) = ((high - side) / 2, (wide - side) / 2);
    let value = |channel: usize, y: usize, x: usize| {
        let byte = resized.pixels[((top + y) * wide + left + x) * CHANNELS + channel];
        let share = (f64::from(byte) * (1.0 / 255.0)) as f32;
        (share - MEAN[channel] as f32) / DEVIATION[channel] as f32
    };
    let places = (0..CHANNELS).flat_map(|channel| (0..side).map(move |y| (channel, y)));
    places.flat_map(|(channel, y)| (0..side).map(move |x| (channel, y, x))).map(|(c, y, x)| value(c, y, x)).collect()
}

/// Pillow's `resize` with `BICUBIC`: along rows and columns, with bytes between. It begins with the columns where that drops
/// more than two lines for each column that the other way drops, as its version 13 was seen to do.
fn resize(picture: &Picture, width: usize, height: usize) -> Picture {
    let (lines, columns) = (picture.height.saturating_sub(height), picture.width.saturating_sub(width));
    let pixels = match lines > 2 * columns {
        true => {
            let upright = transposed(&picture.pixels, picture.width);
            transposed(&turned(&turned(&upright, picture.height, height), picture.width, width), height)
        }
        false => turned(&turned(&picture.pixels, picture.width, width), picture.height, height),
    };
    Picture { width, height, pixels }
}

/// Lines of `width` pixels as columns.
fn transposed(pixels: &[u8], width: usize) -> Vec<u8> {
    let lines = pixels.len() / CHANNELS / width;
    let at = |column: usize, line: usize| (line * width + column) * CHANNELS;
    let places = (0..width).flat_map(|column| (0..lines).map(move |line| at(column, line)));
    places.flat_map(|first| pixels[first..first + CHANNELS].iter().copied()).collect()
}

/// Lines of `from` pixels to lines of `to`, which come out as columns.
fn turned(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    let lines = pixels.len() / CHANNELS / from;
    let mut out = Vec::with_capacity(lines * to * CHANNELS);
    for (first, weights) in windows(from, to) {
        for line in pixels.chunks_exact(from * CHANNELS) {
            let seen = &line[first * CHANNELS..][..weights.len() * CHANNELS];
            for channel in 0..CHANNELS {
                let values = seen.iter().skip(channel).step_by(CHANNELS);
                let sum: i64 = values.zip(&weights).map(|(value, weight)| i64::from(*value) * weight).sum();
                out.push(((sum + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS).clamp(0, 255) as u8);
            }
        }
    }
    out
}

/// For each pixel of the result the first one that it sees, and how much of it and of those behind it, in 2^-22. Where the
/// image shrinks, the cubic is stretched over as many pixels as become one.
fn windows(from: usize, to: usize) -> impl Iterator<Item = (usize, Vec<i64>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    (0..to).map(move |at| {
        let center = (at as f64 + 0.5) * scale;
        // Conversions cut what is negative off.
        let first = (center - REACH * stretch + 0.5) as usize;
        let end = ((center + REACH * stretch + 0.5) as usize).min(from);
        let near = |pixel: usize| cubic((pixel as f64 - center + 0.5) * (1.0 / stretch));
        let sum: f64 = (first..end).map(near).sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << FRACTION_BITS)).round() as i64;
        (first, (first..end).map(|pixel| fixed(near(pixel))).collect())
    })
}

/// Keys, "Cubic convolution interpolation for digital image processing", 1981, with his a = -1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < REACH => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}
