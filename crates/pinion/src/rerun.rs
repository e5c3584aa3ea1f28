//! `pinion rerun`: a stored prediction once more, on what it ran on then, and whether it says the same. Where it cannot, or
//! does not, it says what differs. Nothing is stored.

use std::path::PathBuf;

use clap::Args;
use prediction::{Event, Id, Map, Prediction, Request, Run, Status, Timestamp};
use serde_json::Value;
use sha2::{Digest, Sha256};
use store::files::{FileRows, referred};
use store::{SqliteStore, Store};

use crate::deployment::{CogYaml, Offer};
use crate::failure::Failure;
use crate::{devices, filing, out, paths, run};

#[derive(Args)]
pub struct Words {
    /// The prediction's id
    id: String,
    /// The server's data folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    config: CogYaml,
    /// Print the new prediction as JSON
    #[arg(long)]
    json: bool,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(rerun(words))
}

async fn rerun(words: Words) -> Result<(), Failure> {
    let database = paths::data(words.data).join(paths::DATABASE);
    if !database.is_file() {
        return Err(Failure::BadInput(format!(
            "{} is not there: --data names the server's folder",
            database.display()
        )));
    }
    let store = SqliteStore::open(&database).await.map_err(Failure::failed)?;
    let id = Id::from(words.id.as_str());
    let before = store.get(&id).await.map_err(Failure::failed)?;
    let before = before.ok_or_else(|| Failure::BadInput(format!("{id} is not in {}", database.display())))?;
    let ran = store.run(&id).await.map_err(Failure::failed)?;
    let (before, ran) = repeatable(before, ran)?;
    let deployment = words.config.load()?;
    let offer = deployment.find(&before.request.target)?;
    let found = devices::find();
    let circumstances = Circumstances::here(offer, &found, &ran)?;
    if let Some(why) = circumstances.prevents(&ran) {
        return Err(Failure::Failed(format!("{id} cannot be repeated here: {why}")));
    }
    let brought = filing::bring(&deployment, offer, &id, &before.request.input).await?;
    let spec = prediction::LoadSpec { device: ran.device.clone(), ..offer.spec(None) };
    let request = Request { created_at: Timestamp::now(), webhook: None, ..before.request.clone() };
    let after = run::predict(spec, request, &brought.input, logs).await?;
    if words.json {
        out::line(serde_json::to_string_pretty(&api::render(&after)).map_err(Failure::failed)?)?;
    }
    let same = match (&before.output, &after.output) {
        (Some(was), Some(is)) => same(was, is, &store).await?,
        (was, is) => was == is,
    };
    if same && before.status == after.status {
        eprintln!("pinion: {id}: the same output again");
        return Ok(());
    }
    let differs = circumstances.differs(&ran);
    let differs = match differs.is_empty() {
        true => "nothing that is recorded differs".to_owned(),
        false => format!("what differs: {}", differs.join("; ")),
    };
    let said = after.error.as_deref().map(|error| format!(" ({error})")).unwrap_or_default();
    Err(Failure::Failed(format!("{id}: another output than before{said}; {differs}")))
}

fn logs(event: &Event) -> Result<(), Failure> {
    if let Event::Log(text) = event {
        eprint!("{text}");
    }
    Ok(())
}

/// Is there something to repeat and to compare with?
fn repeatable(before: Prediction, ran: Option<Run>) -> Result<(Prediction, Run), Failure> {
    let id = &before.request.id;
    let known = |run: &Run| {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
        format!("version {}, weights {}, seed {}", text(&run.version), text(&run.weights), run.seed)
    };
    if before.data_removed {
        let known = ran.as_ref().map(|run| format!("; it ran as {}", known(run))).unwrap_or_default();
        return Err(Failure::Failed(format!(
            "{id}: its input and output were removed after the retention time{known}"
        )));
    }
    if before.status != Status::Succeeded {
        let status = before.status.as_str();
        return Err(Failure::Failed(format!("{id} is {status}: only what succeeded has an output to compare with")));
    }
    match ran {
        Some(ran) => Ok((before, ran)),
        None => Err(Failure::Failed(format!("{id}: nothing is recorded of what it ran on: an older program made it"))),
    }
}

/// What it would run on now.
struct Circumstances {
    version: String,
    weights: String,
    device_name: Option<String>,
}

impl Circumstances {
    fn here(offer: &Offer, found: &devices::Found, ran: &Run) -> Result<Self, Failure> {
        let device_name = match ran.device.as_str() {
            "cpu" => Some(runner::device::name(&runner::device::pick("cpu")?)),
            device => found.devices.iter().find(|there| there.device == device).map(|there| there.name.clone()),
        };
        Ok(Self { version: offer.version()?, weights: offer.set_digest()?, device_name })
    }

    /// What makes it another prediction, or none at all.
    fn prevents(&self, ran: &Run) -> Option<String> {
        let was = |was: &Option<String>| was.clone().unwrap_or_else(|| "not known".into());
        if ran.weights.as_deref() != Some(&self.weights) {
            return Some(format!("its weights were {}, these are {}", was(&ran.weights), self.weights));
        }
        if ran.version.as_deref() != Some(&self.version) {
            let (was, is) = (was(&ran.version), &self.version);
            return Some(format!(
                "it ran as version {was}, this is {is}: the schema or this model's line in cog.yaml is another"
            ));
        }
        self.device_name.is_none().then(|| format!("it ran on {} ({}), which is not here", ran.device, ran.device_name))
    }

    fn differs(&self, ran: &Run) -> Vec<String> {
        let mut differs = Vec::new();
        let program = prediction::frame::BUILD;
        if ran.program != program {
            differs.push(format!("the program was {}, this is {program}", ran.program));
        }
        if let Some(name) = self.device_name.as_ref().filter(|name| **name != ran.device_name) {
            differs.push(format!("{} was {}, this is {name}", ran.device, ran.device_name));
        }
        differs
    }
}

/// Equal, where a stored file is equal to its content.
async fn same(was: &Value, is: &Value, store: &SqliteStore) -> Result<bool, Failure> {
    let mut pairs = vec![(was, is)];
    while let Some((was, is)) = pairs.pop() {
        match (was, is) {
            (Value::Array(was), Value::Array(is)) if was.len() == is.len() => pairs.extend(was.iter().zip(is)),
            (Value::Object(was), Value::Object(is)) if keys(was) == keys(is) => {
                pairs.extend(was.iter().map(|(key, value)| (value, &is[key])));
            }
            (Value::String(was), Value::String(is)) if was != is => {
                let (Some(id), Ok(content)) = (referred(was), egress::data(is, is.len() as u64)) else {
                    return Ok(false);
                };
                let Some(file) = store.file_get(id).await.map_err(Failure::failed)? else {
                    return Err(Failure::Failed(format!(
                        "a file of its output, {id}, was removed: there is nothing to compare with"
                    )));
                };
                if file.sha256 != hex::encode(Sha256::digest(&content.bytes)) {
                    return Ok(false);
                }
            }
            (was, is) if was != is => return Ok(false),
            _ => {}
        }
    }
    Ok(true)
}

fn keys(map: &Map) -> std::collections::BTreeSet<&String> {
    map.keys().collect()
}
