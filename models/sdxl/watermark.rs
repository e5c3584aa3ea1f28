//! The invisible watermark that the hosted model's images carry: 48 bits, known to whoever looks for images of SDXL, in the
//! chroma of each image. The method is `dwtDct` of the package invisible-watermark 0.2.0, which the reference pipeline uses:
//! a Haar wavelet of the U plane, and in each block of 4 x 4 of its coarse quarter the largest value moved to the upper or
//! lower part of its step. (No cosine transform is in it, whatever its name.) Refuses to know files.

/// "StableDiffusionXL" as the reference abbreviates it, the first bit first.
const MESSAGE: u64 = 0b1011_0011_1110_1100_1001_0000_0111_1011_1011_0001_1001_1110;
const BITS: usize = 48;
/// The reference marks nothing narrower.
pub const MIN_WIDTH: usize = 256;
/// Between two places where the same bit may lie.
const STEP: f32 = 36.0;
/// Values of the coarse quarter on a block's side.
const BLOCK: usize = 4;

/// Weights of the U and V planes as OpenCV has them, and of the way back.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];
const TO_U: f32 = 0.492;
/// What OpenCV adds to U, which decides where a step of the watermark begins.
const U_MIDDLE: f32 = 0.5;
const TO_V: f32 = 0.877;
const RED_OF_V: f32 = 1.140;
const GREEN_OF_U: f32 = -0.395;
const GREEN_OF_V: f32 = -0.581;
const BLUE_OF_U: f32 = 2.032;

/// Marks an image of red, green and blue, 0 to 255. A narrow one stays as it is.
pub fn apply(rgb: &mut [f32], width: usize, height: usize) {
    if width < MIN_WIDTH {
        return;
    }
    let luma = |pixel: &[f32]| LUMA[0] * pixel[0] + LUMA[1] * pixel[1] + LUMA[2] * pixel[2];
    let mut u: Vec<f32> = rgb.chunks_exact(3).map(|pixel| TO_U * (pixel[2] - luma(pixel)) + U_MIDDLE).collect();
    // What does not fill a block of 4 x 4 pixels is left out of the wavelet.
    mark(&mut u, width, width / 4 * 4, height / 4 * 4);
    for (pixel, u) in rgb.chunks_exact_mut(3).zip(u) {
        let (y, u) = (luma(pixel), u - U_MIDDLE);
        let v = TO_V * (pixel[0] - y);
        pixel[0] = y + RED_OF_V * v;
        pixel[1] = y + GREEN_OF_U * u + GREEN_OF_V * v;
        pixel[2] = y + BLUE_OF_U * u;
    }
}

/// A plane whose rows are `stride` apart.
fn mark(plane: &mut [f32], stride: usize, width: usize, height: usize) {
    let (columns, rows) = (width / 2, height / 2);
    let mut coarse = vec![0f32; columns * rows];
    // Differences between columns and between rows, and the rest.
    let mut fine = vec![[0f32; 3]; columns * rows];
    for row in 0..rows {
        for column in 0..columns {
            let at = 2 * row * stride + 2 * column;
            let [a, b, c, d] = [plane[at], plane[at + 1], plane[at + stride], plane[at + stride + 1]];
            coarse[row * columns + column] = (a + b + c + d) / 2.0;
            fine[row * columns + column] = [(a + b - c - d) / 2.0, (a - b + c - d) / 2.0, (a - b - c + d) / 2.0];
        }
    }
    let mut bit = 0;
    for row in (0..rows / BLOCK * BLOCK).step_by(BLOCK) {
        for column in (0..columns / BLOCK * BLOCK).step_by(BLOCK) {
            let place = largest(&coarse, columns, row, column);
            let upper = MESSAGE >> (BITS - 1 - bit % BITS) & 1 == 1;
            let value = coarse[place];
            let part = if upper { 0.75 } else { 0.25 };
            coarse[place] = ((value.abs() / STEP).floor() + part) * STEP * if value < 0.0 { -1.0 } else { 1.0 };
            bit += 1;
        }
    }
    for row in 0..rows {
        for column in 0..columns {
            let at = 2 * row * stride + 2 * column;
            let mean = coarse[row * columns + column];
            // The reference hands its wavelet back the two differences in each other's place, and so its images have them.
            let [vertical, horizontal, diagonal] = fine[row * columns + column];
            plane[at] = (mean + horizontal + vertical + diagonal) / 2.0;
            plane[at + 1] = (mean + horizontal - vertical - diagonal) / 2.0;
            plane[at + stride] = (mean - horizontal + vertical - diagonal) / 2.0;
            plane[at + stride + 1] = (mean - horizontal - vertical + diagonal) / 2.0;
        }
    }
}

/// Where the largest value of a block lies, its first one apart.
fn largest(coarse: &[f32], columns: usize, row: usize, column: usize) -> usize {
    let places = (1..BLOCK * BLOCK).map(|n| (row + n / BLOCK) * columns + column + n % BLOCK);
    let larger = |best: usize, place: usize| if coarse[place].abs() > coarse[best].abs() { place } else { best };
    places.reduce(larger).unwrap_or(row * columns + column)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red, green and blue that change from place to place, as `golden/watermark.py` makes them.
    fn scene(width: usize, height: usize) -> Vec<f32> {
        let mut rgb = Vec::new();
        for y in 0..height {
            for x in 0..width {
                rgb.extend(
                    [(x * 3 + y) % 256, (y * 2 + x / 2) % 256, (x * y / 7 + 40) % 256].map(|value| value as f32),
                );
            }
        }
        rgb
    }

    /// The bits that are in an image, by the reference's own rule.
    fn found(rgb: &[f32], width: usize, height: usize) -> u64 {
        let (columns, rows) = (width / 4 * 2, height / 4 * 2);
        let u = |x: usize, y: usize| {
            let pixel = &rgb[(y * width + x) * 3..][..3];
            TO_U * (pixel[2] - LUMA[0] * pixel[0] - LUMA[1] * pixel[1] - LUMA[2] * pixel[2]) + U_MIDDLE
        };
        let coarse: Vec<f32> = (0..rows * columns)
            .map(|at| (2 * (at % columns), 2 * (at / columns)))
            .map(|(x, y)| (u(x, y) + u(x + 1, y) + u(x, y + 1) + u(x + 1, y + 1)) / 2.0)
            .collect();
        let mut votes = [(0, 0); BITS];
        let mut bit = 0;
        for row in (0..rows / BLOCK * BLOCK).step_by(BLOCK) {
            for column in (0..columns / BLOCK * BLOCK).step_by(BLOCK) {
                let value = coarse[largest(&coarse, columns, row, column)].abs();
                let vote = &mut votes[bit % BITS];
                vote.0 += usize::from(value % STEP > STEP / 2.0);
                vote.1 += 1;
                bit += 1;
            }
        }
        votes.iter().fold(0, |message, (ones, all)| message << 1 | u64::from(2 * ones > *all))
    }

    #[test]
    fn the_message_is_read_back_also_after_rounding_to_bytes() {
        let (width, height) = (264, 260);
        let mut rgb = scene(width, height);
        assert_ne!(found(&rgb, width, height), MESSAGE);
        apply(&mut rgb, width, height);
        rgb.iter_mut().for_each(|value| *value = value.round().clamp(0.0, 255.0));
        assert_eq!(found(&rgb, width, height), MESSAGE);
    }

    #[test]
    fn a_marked_image_is_the_reference_packages() {
        let golden = include_bytes!("golden/watermark.f32");
        let golden: Vec<f32> =
            golden.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
        let (width, height) = (262, 37);
        let mut rgb = scene(width, height);
        apply(&mut rgb, width, height);
        assert_eq!(golden.len(), rgb.len());
        let far = rgb.iter().zip(&golden).filter(|(ours, theirs)| (*ours - *theirs).abs() > 1e-2).count();
        assert_eq!(far, 0, "of {} values", rgb.len());
    }

    #[test]
    fn a_narrow_image_is_not_marked() {
        let before = scene(248, 300);
        let mut rgb = before.clone();
        apply(&mut rgb, 248, 300);
        assert!(rgb == before);
    }
}
