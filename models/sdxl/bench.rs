//! How fast these weights paint here: the nets alone, guided, one image after the other, without files and events. Refuses to
//! know predictions.

use std::time::Instant;

use kernels::Pool;
use kernels::peak::processor_seconds;
use prediction::{LoadSpec, PredictError};

use super::generate::{Plan, Refine};
use super::noise::Seeded;
use super::pipeline::{Pipeline, call_operations};
use crate::{BenchShape, PaintResult, StepTimes, Told};

/// Paints one image of each shape by K_EULER, and a small one of one step before, unmeasured.
pub fn run(spec: &LoadSpec, shapes: &[BenchShape], told: &mut dyn FnMut(Told)) -> Result<(), PredictError> {
    let began = Instant::now();
    let mut pipeline = Pipeline::load(spec, None, &mut |line| told(Told::Line(line)))?;
    let load_s = began.elapsed().as_secs_f64();
    let cpu = pipeline.setting.device.is_cpu();
    let peak = |pool: &Pool| if cpu { kernels::peak::flops(pool) } else { 0.0 };
    let peaks = [peak(&pipeline.setting.pool), peak(&Pool::new(1))];
    if let Some(BenchShape { steps, side, .. }) = shapes.iter().find(|shape| shape.steps == 0 || shape.side == 0) {
        return Err(PredictError::FixInput(format!("steps are {steps} and the side {side}; 1 or more")));
    }
    for shape in shapes {
        paint(&mut pipeline, shape.side, 1)?;
        let times = paint(&mut pipeline, shape.side, shape.steps)?;
        let steps_s = times.steps.total_s().max(f64::MIN_POSITIVE);
        let step = call_operations(pipeline.generator()?, 2, shape.side, shape.side);
        told(Told::Painted(PaintResult {
            load_s,
            prompt_s: times.prompt_s,
            steps_per_s: shape.steps as f64 / steps_s,
            step_p50_s: times.steps.quantile_s(0.5),
            decode_s: times.decode_s,
            image_s: times.prompt_s + times.steps.total_s() + times.decode_s,
            operations_per_s: step * shape.steps as f64 / steps_s,
            peak_operations_per_s: peaks[0],
            operations_per_processor_s: if cpu && times.processor_s > 0.0 {
                step * shape.steps as f64 / times.processor_s
            } else {
                0.0
            },
            peak_operations_of_one_thread_per_s: peaks[1],
            side: shape.side,
            steps: shape.steps,
            threads: pipeline.setting.pool.threads(),
            weights_bytes: pipeline.bytes,
        }));
    }
    Ok(())
}

struct Times {
    prompt_s: f64,
    steps: StepTimes,
    decode_s: f64,
    /// Of all threads, in the steps.
    processor_s: f64,
}

fn paint(pipeline: &mut Pipeline, side: usize, steps: usize) -> Result<Times, PredictError> {
    let generator = pipeline.generator()?;
    let plan = Plan {
        prompt: "A brass orrery on a desk, morning light".into(),
        negative: Some("blurry".into()),
        height: side,
        width: side,
        steps,
        guidance: 7.5,
        scheduler: "K_EULER".into(),
        image: None,
        mask: None,
        strength: 1.0,
        refine: Refine::No,
    };
    let began = Instant::now();
    let prepared = generator.prepare(&plan)?;
    let mut drawing = generator.begin(&prepared, Box::new(Seeded { seed: 1, image: 0 }))?;
    let (prompt_s, mut times) = (began.elapsed().as_secs_f64(), StepTimes::default());
    let worked = processor_seconds();
    for _ in 0..steps {
        // A step ends by a number from the device.
        let began = Instant::now();
        generator.step(&prepared, &mut drawing)?;
        times.push(began.elapsed().as_secs_f64());
    }
    let processor_s = processor_seconds() - worked;
    let began = Instant::now();
    let pixels = generator.decode(drawing.latents())?;
    pixels.flatten_all().and_then(|all| all.to_vec1::<f32>()).map_err(|error| runner::device::fault(&error))?;
    Ok(Times { prompt_s, steps: times, decode_s: began.elapsed().as_secs_f64(), processor_s })
}
