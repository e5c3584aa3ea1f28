//! Images that are given: numbers of a network to pixels, pixels to files. PNG says how it was made, in a text chunk.
//! Refuses to know networks.

use std::fmt::Display;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use prediction::PredictError;
use serde_json::Value;

use super::image::Picture;
use super::input::Format;
use super::watermark;

/// The keyword of the text chunk.
pub const KEYWORD: &str = "pinion";

impl Picture {
    /// Of `[height, width, 3]` values, -1 to 1 where they can be seen.
    pub fn of_values(values: &[f32], width: usize, height: usize, watermarked: bool) -> Self {
        // As a screen counts, before anything is rounded.
        let mut shown: Vec<f32> = values.iter().map(|value| (value / 2.0 + 0.5) * 255.0).collect();
        if watermarked {
            watermark::apply(&mut shown, width, height);
        }
        let pixels = shown.iter().map(|value| value.round_ties_even().clamp(0.0, 255.0) as u8).collect();
        Self { width, height, pixels }
    }

    /// As a file. `how` says how it was made, as JSON; where the format has no place for it, it is left out.
    pub fn encode(&self, format: Format, how: &Value) -> Result<Vec<u8>, PredictError> {
        let (width, height) = (self.width as u32, self.height as u32);
        let mut file = Vec::new();
        let failed = |error: &dyn Display| PredictError::Operator(format!("an image could not be written: {error}"));
        match format {
            Format::Png => self.png(&mut file, how).map_err(|error| failed(&error))?,
            Format::WebP => {
                let encoder = WebPEncoder::new_lossless(&mut file);
                encoder.encode(&self.pixels, width, height, ExtendedColorType::Rgb8).map_err(|error| failed(&error))?;
            }
            Format::Jpeg(quality) => {
                let mut encoder = JpegEncoder::new_with_quality(&mut file, quality);
                encoder.encode(&self.pixels, width, height, ExtendedColorType::Rgb8).map_err(|error| failed(&error))?;
            }
        }
        Ok(file)
    }

    fn png(&self, file: &mut Vec<u8>, how: &Value) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(file, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_itxt_chunk(KEYWORD.to_owned(), how.to_string())?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()
    }

    /// As a data URI, which is how models give files.
    pub fn data_uri(&self, format: Format, how: &Value) -> Result<String, PredictError> {
        let kind = match format {
            Format::Png => "image/png",
            Format::WebP => "image/webp",
            Format::Jpeg(_) => "image/jpeg",
        };
        Ok(format!("data:{kind};base64,{}", STANDARD.encode(self.encode(format, how)?)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn picture() -> Picture {
        let pixels = (0..16 * 8 * 3).map(|place| (place * 7 % 256) as u8).collect();
        Picture { width: 16, height: 8, pixels }
    }

    #[test]
    fn a_png_says_how_it_was_made_and_loses_nothing() {
        let how = json!({"seed": 7, "input": {"prompt": "a café, „quoted“"}});
        let file = picture().encode(Format::Png, &how).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap();
        let text = &reader.info().utf8_text[0];
        assert_eq!(text.keyword, "pinion");
        assert_eq!(serde_json::from_str::<Value>(&text.get_text().unwrap()).unwrap(), how);
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, picture().pixels);
    }

    #[test]
    fn webp_loses_nothing_and_jpeg_little() {
        let webp = picture().encode(Format::WebP, &Value::Null).unwrap();
        assert_eq!(image::load_from_memory(&webp).unwrap().into_rgb8().into_raw(), picture().pixels);
        let flat = Picture { width: 16, height: 8, pixels: [200, 100, 50].repeat(128) };
        let jpeg = flat.encode(Format::Jpeg(95), &Value::Null).unwrap();
        let back = image::load_from_memory(&jpeg).unwrap().into_rgb8().into_raw();
        assert!(back.iter().zip(&flat.pixels).all(|(a, b)| a.abs_diff(*b) < 6), "{:?}", &back[..3]);
        let worse = picture().encode(Format::Jpeg(10), &Value::Null).unwrap();
        assert!(worse.len() < picture().encode(Format::Jpeg(95), &Value::Null).unwrap().len());
        let uri = picture().data_uri(Format::Jpeg(95), &Value::Null).unwrap();
        assert!(uri.starts_with("data:image/jpeg;base64,/9j/"), "{}", &uri[..40]);
    }

    #[test]
    fn values_beyond_what_can_be_seen_are_the_brightest_or_darkest() {
        let picture = Picture::of_values(&[-3.0, -1.0, 0.0, 1.0, 2.0, 0.5], 2, 1, false);
        assert_eq!(picture.pixels, [0, 0, 128, 255, 255, 191]);
    }
}
