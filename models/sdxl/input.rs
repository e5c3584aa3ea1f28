//! What a caller may ask of SDXL: the hosted model's names in the hosted order, our own behind them, and what they come to.
//! Refuses to know networks and files' contents.

use prediction::{Map, PredictError};
use schema::Uri;
use serde_json::Value;

/// Steps of one denoising at most.
const MAX_STEPS: i64 = 500;
/// Pixels of a side, and what sides are multiples of: one latent has the eight pixels of the autoencoder.
pub const MIN_SIDE: usize = 64;
pub const MAX_SIDE: usize = 2048;
pub const SIDE_UNIT: usize = 8;

schema::input! {
    pub struct Input {
        prompt: String { description: "Input prompt", default: "An astronaut riding a rainbow unicorn" }
        negative_prompt: String { description: "Input Negative Prompt", default: "" }
        image: Option<Uri> { description: "Input image for img2img or inpaint mode" }
        mask: Option<Uri> {
            description: "Input mask for inpaint mode. Black areas will be preserved, white areas will be inpainted.",
        }
        width: i64 { description: "Width of output image", default: 1024 }
        height: i64 { description: "Height of output image", default: 1024 }
        num_outputs: i64 { description: "Number of images to output.", default: 1, min: 1, max: 4 }
        scheduler: String { description: "scheduler", default: "K_EULER", choices: SCHEDULERS }
        num_inference_steps: i64 { description: "Number of denoising steps", default: 50, min: 1, max: MAX_STEPS }
        guidance_scale: f64 { description: "Scale for classifier-free guidance", default: 7.5, min: 1, max: 50 }
        prompt_strength: f64 {
            description: "Prompt strength when using img2img / inpaint. 1.0 corresponds to full destruction of information \
                in image",
            default: 0.8, min: 0, max: 1,
        }
        seed: Option<i64> { description: "Random seed. Leave blank to randomize the seed" }
        refine: String { description: "Which refine style to use", default: REFINES[0], choices: REFINES }
        high_noise_frac: f64 {
            description: "For expert_ensemble_refiner, the fraction of noise to use", default: 0.8, min: 0, max: 1,
        }
        refine_steps: Option<i64> {
            description: "For base_image_refiner, the number of steps to refine, defaults to num_inference_steps",
        }
        apply_watermark: bool {
            description: "Applies a watermark to enable determining if an image is generated in downstream applications. \
                If you have other provisions for generating or deploying images safely, you can use this to disable \
                watermarking.",
            default: true,
        }
        lora_scale: f64 {
            description: "LoRA additive scale. Only applicable on trained models.", default: 0.6, min: 0, max: 1,
        }
        replicate_weights: Option<String> {
            description: "Replicate LoRA weights to use. Leave blank to use the default weights.", file: true,
        }
        disable_safety_checker: bool {
            description: "Disable safety checker for generated images. This feature is only available through the API. See \
                [https://replicate.com/docs/how-does-replicate-work#safety]\
                (https://replicate.com/docs/how-does-replicate-work#safety)",
            default: false,
        }
        output_format: String {
            description: "Of the image files. PNG says in a text chunk how the image was made; WebP is lossless too.",
            default: FORMATS[0], choices: FORMATS,
        }
        output_quality: i64 {
            description: "Of JPEG files, 100 is best. Others lose nothing.", default: 95, min: 1, max: 100,
        }
        preview_every: Option<i64> {
            description: "Give a small rough image of each output so far every so many steps while it runs.",
            min: 1, max: MAX_STEPS,
        }
    }
}

pub const SCHEDULERS: &[&str] =
    &["DDIM", "DPMSolverMultistep", "HeunDiscrete", "KarrasDPM", "K_EULER_ANCESTRAL", "K_EULER", "PNDM"];
const REFINES: &[&str] = &["no_refiner", "expert_ensemble_refiner", "base_image_refiner"];
const FORMATS: &[&str] = &["png", "webp", "jpg"];

/// What the refiner does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refine {
    No,
    /// Takes over where this share of the noise is gone.
    Ensemble(f64),
    /// Denoises the finished image once more, in so many steps.
    Image(usize),
}

/// In which form images are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    WebP,
    /// Its quality, 1 to 100.
    Jpeg(u8),
}

/// An input as the pipeline wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub prompt: String,
    pub negative: String,
    pub image: Option<Uri>,
    pub mask: Option<Uri>,
    /// Pixels, as asked; none where the caller left it out.
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub outputs: usize,
    pub scheduler: String,
    pub steps: usize,
    pub guidance: f64,
    pub strength: f64,
    pub seed: u64,
    pub refine: Refine,
    pub watermark: bool,
    pub lora: Option<Uri>,
    pub lora_scale: f64,
    pub check_safety: bool,
    pub format: Format,
    pub preview_every: Option<usize>,
    /// What was given, without files: how the image was made.
    pub given: Map,
}

/// Where nobody says anything else.
pub const USUAL_SIDE: usize = 1024;

impl Asked {
    /// `defaults` are the deployment's, in place of the model's own. `seed` serves where the input names none.
    pub fn read(mut given: Map, defaults: &Map, seed: u64) -> Result<Self, PredictError> {
        for (name, value) in defaults {
            if given.get(name).is_none_or(Value::is_null) {
                given.insert(name.clone(), value.clone());
            }
        }
        let fixed = PredictError::FixInput;
        let input = Input::parse(&given).map_err(|errors| fixed(schema::detail(&errors).trim_end().into()))?;
        let side = |name: &str, pixels: i64| -> Result<Option<usize>, PredictError> {
            if given.get(name).is_none_or(Value::is_null) {
                return Ok(None);
            }
            let limits = MIN_SIDE as i64..=MAX_SIDE as i64;
            if !limits.contains(&pixels) {
                return Err(fixed(format!("{name} is {pixels}; {MIN_SIDE} to {MAX_SIDE} pixels can be painted")));
            }
            Ok(Some(pixels as usize))
        };
        let refine_steps = match input.refine_steps.unwrap_or(input.num_inference_steps) {
            steps if (1..=MAX_STEPS).contains(&steps) => steps as usize,
            steps => return Err(fixed(format!("refine_steps is {steps}; 1 to {MAX_STEPS}"))),
        };
        let (width, height) = (side("width", input.width)?, side("height", input.height)?);
        given
            .retain(|name, value| !["image", "mask", "replicate_weights"].contains(&name.as_str()) && !value.is_null());
        Ok(Self {
            prompt: input.prompt,
            negative: input.negative_prompt,
            image: input.image,
            mask: input.mask,
            width,
            height,
            outputs: input.num_outputs as usize,
            scheduler: input.scheduler,
            steps: input.num_inference_steps as usize,
            guidance: input.guidance_scale,
            strength: input.prompt_strength,
            seed: input.seed.map_or(seed, |seed| seed as u64),
            refine: match input.refine.as_str() {
                "expert_ensemble_refiner" => Refine::Ensemble(input.high_noise_frac),
                "base_image_refiner" => Refine::Image(refine_steps),
                _ => Refine::No,
            },
            watermark: input.apply_watermark,
            lora: input.replicate_weights.filter(|uri| !uri.trim().is_empty()).map(Uri),
            lora_scale: input.lora_scale,
            check_safety: !input.disable_safety_checker,
            format: match input.output_format.as_str() {
                "webp" => Format::WebP,
                "jpg" => Format::Jpeg(input.output_quality as u8),
                _ => Format::Png,
            },
            preview_every: input.preview_every.map(|steps| steps as usize),
            given,
        })
    }

    /// The size to paint, a multiple of [`SIDE_UNIT`], for an input image of `of` pixels. As the hosted model does: what is
    /// painted over an image is as large as the image unless a size is asked for; with a mask, or without an image, the
    /// size is the asked or the usual one.
    pub fn size(&self, of: Option<(usize, usize)>) -> Result<(usize, usize), PredictError> {
        let of = of.filter(|_| self.mask.is_none());
        let side = |asked: Option<usize>, own: Option<usize>, name: &str| {
            let pixels = asked.or(own).unwrap_or(USUAL_SIDE);
            let rounded = (pixels + SIDE_UNIT / 2) / SIDE_UNIT * SIDE_UNIT;
            match (MIN_SIDE..=MAX_SIDE).contains(&rounded) {
                true => Ok(rounded),
                false => Err(PredictError::FixInput(format!(
                    "image has a {name} of {pixels} pixels; {MIN_SIDE} to {MAX_SIDE} can be painted: ask for a width and \
                     a height, and the image is resized"
                ))),
            }
        };
        Ok((side(self.width, of.map(|of| of.0), "width")?, side(self.height, of.map(|of| of.1), "height")?))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(given: Value) -> Result<Asked, PredictError> {
        Asked::read(given.as_object().unwrap().clone(), &Map::new(), 77)
    }

    /// What the hosted service's own generator made of the hosted model's source.
    const HOSTED: &str = include_str!("tests/hosted_schema.json");

    #[test]
    fn every_hosted_field_is_equal_in_type_default_bounds_and_order() {
        let hosted: Value = serde_json::from_str(HOSTED).unwrap();
        let model = schema::ModelSchema { input: Input::fields(), output: schema::Output::UriList };
        let (ours, choices) = (model.input_json(), model.choices_json());
        let mut names: Vec<_> = hosted["Input"]["properties"].as_object().unwrap().iter().collect();
        names.sort_by_key(|(_, property)| property["x-order"].as_u64());
        for (name, theirs) in names {
            let own = &ours["properties"][name];
            for key in ["type", "format", "title", "description", "default", "x-order", "allOf"] {
                assert_eq!(own[key], theirs[key], "{name}.{key}");
            }
            for key in ["minimum", "maximum"] {
                assert_eq!(own[key].as_f64(), theirs[key].as_f64(), "{name}.{key}");
            }
            // Ours takes null where theirs may be left out.
            assert_eq!(own["nullable"].is_null(), !theirs["default"].is_null(), "{name}");
        }
        for name in ["scheduler", "refine"] {
            assert_eq!(choices[name], hosted[name], "{name}");
        }
        assert_eq!(model.output_json(), hosted["Output"]);
        let own: Vec<_> = Input::fields().iter().skip(19).map(|field| field.name).collect();
        assert_eq!(own, ["output_format", "output_quality", "preview_every"]);
    }

    #[test]
    fn defaults_are_the_hosted_models() {
        let asked = read(json!({})).unwrap();
        assert_eq!((asked.steps, asked.guidance, asked.strength, asked.seed), (50, 7.5, 0.8, 77));
        assert_eq!((asked.outputs, asked.watermark, asked.check_safety, asked.refine), (1, true, true, Refine::No));
        assert_eq!((asked.size(None).unwrap(), asked.format), ((1024, 1024), Format::Png));
        assert_eq!(read(json!({"seed": 0})).unwrap().seed, 0);
        let refine = read(json!({"refine": "base_image_refiner", "num_inference_steps": 7})).unwrap().refine;
        assert_eq!(refine, Refine::Image(7));
        assert_eq!(read(json!({"replicate_weights": " "})).unwrap().lora, None);
    }

    #[test]
    fn sizes_are_rounded_to_what_latents_are_made_of() {
        let asked = read(json!({"width": 515, "height": 516})).unwrap();
        assert_eq!(asked.size(None).unwrap(), (512, 520));
        // Over an image, its own size; in a mask's places, the asked or the usual one.
        let over = read(json!({"image": "file:///a.png", "height": 256})).unwrap();
        assert_eq!(over.size(Some((303, 900))).unwrap(), (304, 256));
        let within = read(json!({"image": "file:///a.png", "mask": "file:///b.png"})).unwrap();
        assert_eq!(within.size(Some((300, 900))).unwrap(), (1024, 1024));
        let large = read(json!({"image": "file:///a.png"})).unwrap().size(Some((4000, 900))).unwrap_err();
        assert!(large.to_string().contains("image has a width of 4000 pixels; 64 to 2048"), "{large}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_field_value_and_limit() {
        for (given, expected) in [
            (json!({"width": 0}), "width is 0; 64 to 2048"),
            (json!({"height": 4096}), "height is 4096; 64 to 2048"),
            (json!({"width": "wide"}), "input.width: Invalid type"),
            (json!({"num_inference_steps": 10_000}), "num_inference_steps: Must be less than or equal to 500"),
            (json!({"num_outputs": 5}), "num_outputs: Must be less than or equal to 4"),
            (json!({"scheduler": "EULER"}), "scheduler must be one of the following: \"DDIM\""),
            (json!({"guidance_scale": 0.5}), "guidance_scale: Must be greater than or equal to 1"),
            (json!({"refine_steps": 0}), "refine_steps is 0; 1 to 500"),
            (json!({"image": "a.png"}), "image: Does not match format 'uri'"),
            (json!({"replicate_weights": "/etc/passwd"}), "replicate_weights: Does not match format 'uri'"),
        ] {
            let why = read(given.clone()).unwrap_err();
            assert!(matches!(&why, PredictError::FixInput(text) if text.contains(expected)), "{given}: {why}");
        }
    }
}
