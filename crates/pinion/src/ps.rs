//! `pinion ps`: how a server stands, in a table. Asks over HTTP; refuses to know how the server knows.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use dispatch::{DeviceHealth, Health, ModelHealth, ModelState, TargetHealth};
use egress::{Egress, EgressError, Rules};

use crate::failure::Failure;
use crate::out;

#[derive(Args)]
pub struct Words {
    /// The server's address; one with tokens wants one in PINION_TOKEN or REPLICATE_API_TOKEN
    #[arg(long, default_value = "http://127.0.0.1:5000", value_name = "URL")]
    server: String,
    /// What the server answered, as JSON on one line
    #[arg(long)]
    json: bool,
    /// Again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Of the server's own routes; it is in none of the hosted APIs.
const PATH: &str = "/pinion/status";
/// Far more than the models of one server need.
const ANSWER_BYTES: usize = 4 << 20;
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// On a terminal: to the upper left corner, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[J";

pub fn main(words: Words) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(async {
        let egress = way()?;
        let asked = async {
            loop {
                show(&words, ask(&egress, &words.server).await?)?;
                if !words.watch {
                    return Ok(());
                }
                tokio::time::sleep(WATCH_EVERY).await;
            }
        };
        tokio::select! {
            outcome = asked => outcome,
            // The way to end a watch, and so no failure of it.
            _ = tokio::signal::ctrl_c() => if words.watch { Ok(()) } else { Err(Failure::Interrupted) },
        }
    })
}

fn show(words: &Words, health: Health) -> Result<(), Failure> {
    if words.json {
        return out::line(serde_json::to_string(&health).map_err(Failure::failed)?);
    }
    let clear = if words.watch && std::io::stdout().is_terminal() { CLEAR } else { "" };
    out::piece(format_args!("{clear}{}", table(&health)))
}

/// The way to a server. Whoever names one may reach it, wherever it is.
pub fn way() -> Result<Egress, Failure> {
    Egress::new(Rules { allow_loopback: true, allow_private: true }).map_err(Failure::failed)
}

async fn ask(egress: &Egress, server: &str) -> Result<Health, Failure> {
    let token = ["PINION_TOKEN", "REPLICATE_API_TOKEN"].iter().find_map(|name| std::env::var(name).ok());
    let headers: Vec<_> = token.map(|token| ("authorization", format!("Bearer {token}"))).into_iter().collect();
    let failed = |why: String| Err(Failure::Failed(format!("--server {server}: {why}")));
    match get(egress, server, PATH, &headers).await? {
        (200, body) => match serde_json::from_slice(&body) {
            Ok(health) => Ok(health),
            Err(error) => failed(format!("what answers is no Pinion of this version: {error}")),
        },
        (401, _) if headers.is_empty() => {
            failed("it wants a token; put one that `pinion token create` made there into PINION_TOKEN".into())
        }
        (401, _) => failed("it does not know the token in PINION_TOKEN or REPLICATE_API_TOKEN".into()),
        (status, _) => failed(format!("what answers is no Pinion of this version: {PATH} has status {status}")),
    }
}

/// The status and the body that a server answers to a GET of `path`.
pub async fn get(
    egress: &Egress,
    server: &str,
    path: &str,
    headers: &[(&str, String)],
) -> Result<(u16, Vec<u8>), Failure> {
    let url = format!("{}{path}", server.trim_end_matches('/'));
    egress.get(&url, headers, ANSWER_BYTES).await.map_err(|error| match error {
        EgressError::NotAUrl | EgressError::Scheme(_) => Failure::BadInput(format!("--server {server}: {error}")),
        error => {
            Failure::Failed(format!("--server {server}: nobody answers; is `pinion serve` running there? ({error})"))
        }
    })
}

/// Devices, then models, then the length of the queue.
fn table(health: &Health) -> String {
    let mut devices = vec![row(["DEVICE", "NAME", "WORKER", "USED", "BUDGET", "TOTAL", "HOST CACHE"])];
    devices.extend(health.devices.iter().map(device));
    let mut models = vec![row(["MODEL", "ON", "STATE", "MEMORY", "ACTIVE", "IDLE", "QUEUED", "NOTE"])];
    models.extend(health.targets.iter().flat_map(|target| places(target, &health.devices)));
    let waiting = match health.waiting {
        0 => "no prediction waits".to_owned(),
        1 => "1 prediction waits".to_owned(),
        many => format!("{many} predictions wait"),
    };
    format!("{}\n{}\n{waiting}\n", columns(&devices), columns(&models))
}

fn row<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn device(device: &DeviceHealth) -> Vec<String> {
    let worker = if device.worker { "runs" } else { "starting" };
    let (used, budget, total) = (bytes(device.used_bytes), known(device.budget_bytes), known(device.total_bytes));
    let cache = bytes(device.host_cache_bytes);
    row([device.device.as_str(), &device.name, worker, &used, &budget, &total, &cache])
}

/// One row per device that has the model, at least one. The queue is one for all of them.
fn places(target: &TargetHealth, devices: &[DeviceHealth]) -> Vec<Vec<String>> {
    let here = |device: &DeviceHealth| {
        let found = device.models.iter().filter(|model| model.target == target.target);
        found.map(|model| (device.device.clone(), model.clone())).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> =
        devices.iter().flat_map(here).map(|(device, model)| place(target, &device, &model)).collect();
    if rows.is_empty() {
        rows.push(row([target.target.as_str(), "-", "not loaded", "-", "-", "-", "", ""]));
    }
    let [.., queued, note] = rows[0].as_mut_slice() else { return rows };
    *queued = target.queued.to_string();
    if let Some(waits_for) = target.waits_for.as_ref().filter(|_| target.queued > 0) {
        *note = format!("waits for {waits_for}");
    }
    rows
}

fn place(target: &TargetHealth, device: &str, model: &ModelHealth) -> Vec<String> {
    let (state, held, active, note) = match &model.state {
        ModelState::Loading { line } => ("loading", None, None, line.as_str()),
        ModelState::Loaded { bytes, capacity } => ("loaded", Some(*bytes), Some(*capacity), ""),
        ModelState::Unloading => ("unloading", None, None, ""),
        ModelState::Failed { why } => ("failed", None, None, why.as_str()),
    };
    let pinned = if model.pinned { ", pinned" } else { "" };
    let active = active.map_or("-".to_owned(), |capacity| format!("{} of {capacity}", model.active));
    let idle = model.idle_seconds.map_or("-".to_owned(), |seconds| format!("{seconds} s"));
    row([&target.target, device, &format!("{state}{pinned}"), &known(held), &active, &idle, "", note])
}

fn known(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), bytes)
}

/// In decimal units, as cog.yaml counts, with three digits.
fn bytes(count: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    // What would be rounded up to 1000 of a unit is 1.00 of the next.
    let unit = units.into_iter().find(|(unit, _)| count as f64 >= unit * 0.9995);
    let Some((unit, name)) = unit else { return format!("{count} B") };
    let value = count as f64 / unit;
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {name}")
}

/// Left-aligned, two spaces between columns, no space at the ends of lines.
fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(target: &str, state: ModelState, active: u32, idle_seconds: Option<u64>, pinned: bool) -> ModelHealth {
        ModelHealth { target: target.into(), state, active, idle_seconds, pinned }
    }

    fn target(name: &str, queued: u64, waits_for: Option<&str>) -> TargetHealth {
        TargetHealth { target: name.into(), queued, active: 0, waits_for: waits_for.map(str::to_owned) }
    }

    #[test]
    fn the_table_shows_devices_models_memory_and_who_waits_for_what() {
        let loaded = |bytes| ModelState::Loaded { bytes, capacity: 4 };
        let device = |device: &str, worker, models| DeviceHealth {
            device: device.into(),
            name: "NVIDIA T4".into(),
            worker,
            total_bytes: Some(15_800_000_000),
            budget_bytes: Some(12_000_000_000),
            used_bytes: 9_994_000,
            host_cache_bytes: 1_342_177_280,
            models,
        };
        let health = Health {
            devices: vec![
                device("cuda:0", true, vec![model("small", loaded(181_000_000), 1, None, true)]),
                device(
                    "cuda:1",
                    false,
                    vec![
                        model("small", loaded(181_000_000), 0, Some(12), false),
                        model("broken", ModelState::Failed { why: "no disk".into() }, 0, None, false),
                    ],
                ),
            ],
            targets: vec![
                target("small", 0, None),
                target("broken", 0, None),
                target("large", 2, Some("memory: 3 of 5 GB")),
            ],
            waiting: 2,
        };
        let expected = "\
DEVICE  NAME       WORKER    USED     BUDGET   TOTAL    HOST CACHE
cuda:0  NVIDIA T4  runs      9.99 MB  12.0 GB  15.8 GB  1.34 GB
cuda:1  NVIDIA T4  starting  9.99 MB  12.0 GB  15.8 GB  1.34 GB

MODEL   ON      STATE           MEMORY  ACTIVE  IDLE  QUEUED  NOTE
small   cuda:0  loaded, pinned  181 MB  1 of 4  -     0
small   cuda:1  loaded          181 MB  0 of 4  12 s
broken  cuda:1  failed          -       -       -     0       no disk
large   -       not loaded      -       -       -     2       waits for memory: 3 of 5 GB

2 predictions wait
";
        assert_eq!(table(&health), expected);
    }

    #[test]
    fn bytes_have_three_digits_and_the_next_unit_in_time() {
        let table = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (9_994_999, "9.99 MB"),
            (9_995_000, "10.0 MB"),
            (99_950_000, "100 MB"),
            (999_499_999, "999 MB"),
            (999_500_000, "1.00 GB"),
            (81_559_000_000, "81.6 GB"),
            (2_000_000_000_000, "2.00 TB"),
        ];
        for (count, text) in table {
            assert_eq!(bytes(count), text, "{count}");
        }
    }
}
