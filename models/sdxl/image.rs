//! Images that people send: what is in a file, within limits that its header is held to before anything is decoded. PNG of 8
//! and 16 bits, JPEG (CMYK and turned ones too), WebP, and the first frame of a GIF; colours without their transparency, as
//! the hosted model reads them. Refuses to know networks.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use prediction::PredictError;
use schema::Uri;

/// Of an image as it is sent. Photographs of today have 50 million; decoded, this is 200 MB.
const MAX_PIXELS: u64 = 64 << 20;
/// Of its longer side.
const MAX_SIDE: u32 = 16_384;
/// Bytes that a decoder may take, its result included.
const MAX_DECODER_BYTES: u64 = 1 << 30;

/// Above this share of white, a mask's pixel is painted.
const PAINTED: u8 = 128;

/// An image as it is painted or written: rows of red, green and blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}

/// A file that was read.
pub struct Read {
    image: DynamicImage,
    field: &'static str,
    format: ImageFormat,
}

impl Read {
    /// Reads the file of an input field. A header that promises too much is refused before a pixel is decoded.
    pub fn open(field: &'static str, uri: &Uri) -> Result<Self, PredictError> {
        let refuse = |why: String| PredictError::FixInput(format!("{field}: {why}"));
        let path = uri.path().ok_or_else(|| refuse(format!("{} was not fetched", uri.0)))?;
        Self::file(field, &path)
    }

    fn file(field: &'static str, path: &Path) -> Result<Self, PredictError> {
        let refuse = |why: String| PredictError::FixInput(format!("{field}: {why}"));
        let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
        let mut reader =
            ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(|error| refuse(error.to_string()))?;
        let known = "PNG, JPEG, WebP and GIF are read";
        let format = reader.format().ok_or_else(|| refuse(format!("the file is no image that is known; {known}")))?;
        if !format.reading_enabled() {
            return Err(refuse(format!("the file is {format:?}; {known}")));
        }
        let mut limits = Limits::default();
        // Width and height are ours to name: the decoders' own words name no limit.
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        reader.limits(limits);
        let broken = |error: ImageError| refuse(format!("the {} cannot be read: {error}", name(format)));
        let mut decoder = reader.into_decoder().map_err(broken)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MAX_PIXELS || width.max(height) > MAX_SIDE {
            return Err(refuse(format!(
                "it is {width} x {height} pixels; at most {MAX_SIDE} on a side and {MAX_PIXELS} in all are read"
            )));
        }
        let turned = decoder.orientation().map_err(broken)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
        image.apply_orientation(turned);
        Ok(Self { image, field, format })
    }

    /// Pixels of width and height, as a viewer shows it.
    pub fn size(&self) -> (usize, usize) {
        (self.image.width() as usize, self.image.height() as usize)
    }

    /// What the caller may want to know of how it is used; ended by a line end, or empty.
    pub fn note(&self, width: usize, height: usize) -> String {
        let first = if self.format == ImageFormat::Gif { " (the first frame of a GIF)" } else { "" };
        match self.size() {
            size if size == (width, height) && first.is_empty() => String::new(),
            size if size == (width, height) => format!("{}: {width} x {height}{first}\n", self.field),
            (own_width, own_height) => {
                format!("{}: {own_width} x {own_height}{first}, resized to {width} x {height}\n", self.field)
            }
        }
    }

    /// `[height, width, 3]`, -1 to 1, by Lanczos as the reference resizes.
    pub fn colours(self, width: usize, height: usize) -> Vec<f32> {
        let resized = resize(DynamicImage::ImageRgb8(self.image.into_rgb8()), width, height).into_rgb8();
        resized.into_raw().into_iter().map(|value| f32::from(value) / 127.5 - 1.0).collect()
    }

    /// `[height, width]`: 1 where it is painted, 0 where the image is kept.
    pub fn mask(self, width: usize, height: usize) -> Vec<f32> {
        let grey = DynamicImage::ImageLuma8(DynamicImage::ImageRgb8(self.image.into_rgb8()).into_luma8());
        let resized = resize(grey, width, height).into_luma8();
        resized.into_raw().into_iter().map(|value| if value >= PAINTED { 1.0 } else { 0.0 }).collect()
    }
}

fn resize(image: DynamicImage, width: usize, height: usize) -> DynamicImage {
    match (image.width() as usize, image.height() as usize) == (width, height) {
        true => image,
        false => image.resize_exact(width as u32, height as u32, FilterType::Lanczos3),
    }
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        _ => "file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `golden/images.py`: 48 x 32, left half red, right half blue unless something else is said.
    fn example(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("sdxl/tests/images").join(name)
    }

    fn read(name: &str) -> Read {
        Read::file("image", &example(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn refusal(name: &str) -> String {
        match Read::file("image", &example(name)) {
            Err(PredictError::FixInput(why)) => why,
            Err(other) => panic!("{name}: {other}"),
            Ok(_) => panic!("{name} was read"),
        }
    }

    /// The colours in the middle of the left and the right half, 0 to 255.
    fn halves(read: Read) -> [[i32; 3]; 2] {
        let (width, height) = read.size();
        let colours = read.colours(width, height);
        let at = |x: usize| {
            let first = (height / 2 * width + x) * 3;
            [0, 1, 2].map(|channel| ((colours[first + channel] + 1.0) * 127.5).round() as i32)
        };
        [at(width / 4), at(width * 3 / 4)]
    }

    fn is_near(found: [[i32; 3]; 2], wanted: [[i32; 3]; 2]) -> bool {
        found.concat().iter().zip(wanted.concat()).all(|(found, wanted)| (found - wanted).abs() <= 12)
    }

    #[test]
    fn every_kind_of_image_has_its_colours() {
        const RED_BLUE: [[i32; 3]; 2] = [[255, 0, 0], [0, 0, 255]];
        let kinds = ["plain.png", "16bit.png", "palette.png", "alpha.png", "plain.jpg", "plain.webp", "animated.gif"];
        for name in kinds {
            let found = halves(read(name));
            assert!(is_near(found, RED_BLUE), "{name}: {found:?}");
        }
        let grey = halves(read("grey16.png"));
        assert!(is_near(grey, [[64; 3], [192; 3]]), "{grey:?}");
    }

    #[test]
    fn a_cmyk_jpeg_has_the_colours_that_it_was_made_with() {
        let found = halves(read("cmyk.jpg"));
        assert!(is_near(found, [[255, 0, 0], [0, 0, 255]]), "{found:?}");
    }

    #[test]
    fn a_photograph_that_was_turned_stands_upright() {
        // 32 x 48 on the disk, to be turned by a quarter.
        let turned = read("turned.jpg");
        assert_eq!(turned.size(), (48, 32));
        let found = halves(turned);
        assert!(is_near(found, [[255, 0, 0], [0, 0, 255]]), "{found:?}");
    }

    #[test]
    fn a_bomb_is_refused_by_its_header_with_the_limit() {
        let file = example("bomb.png");
        assert!(std::fs::metadata(&file).unwrap().len() < 1000, "its pixels are not there at all");
        let why = refusal("bomb.png");
        assert!(
            why.contains("image: it is 30000 x 30000 pixels; at most 16384 on a side and 67108864 in all"),
            "{why}"
        );
    }

    #[test]
    fn what_is_no_image_is_refused_with_what_would_be_read() {
        assert!(refusal("../predictions.rs").contains("no image that is known; PNG, JPEG, WebP and GIF are read"));
        assert!(refusal("plain.bmp").contains("the file is Bmp; PNG, JPEG, WebP and GIF are read"));
        assert!(refusal("cut.png").starts_with("image: the PNG cannot be read"));
        assert!(refusal("nothing.png").contains("No such file"));
    }

    #[test]
    fn an_image_of_another_size_is_resized_and_that_is_said() {
        let image = read("plain.png");
        assert_eq!(image.note(96, 64), "image: 48 x 32, resized to 96 x 64\n");
        let colours = image.colours(96, 64);
        assert_eq!(colours.len(), 96 * 64 * 3);
        assert!((colours[0] - 1.0).abs() < 0.02 && (colours[1] + 1.0).abs() < 0.02, "{:?}", &colours[..3]);
        assert_eq!(read("plain.png").note(48, 32), "");
        assert_eq!(read("animated.gif").note(48, 32), "image: 48 x 32 (the first frame of a GIF)\n");
    }

    #[test]
    fn white_is_painted_and_black_is_kept() {
        let mask = read("mask.png").mask(96, 64);
        let at = |x: usize, y: usize| mask[y * 96 + x];
        assert_eq!([at(10, 10), at(90, 60)], [0.0, 1.0]);
        assert!(mask.iter().all(|value| *value == 0.0 || *value == 1.0));
    }
}
