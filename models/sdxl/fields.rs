//! A `config.json`, field by field: what is missing, of the wrong kind or not done here is refused with the file, the
//! field and the value. Refuses to know which networks there are.

use prediction::PredictError;
use serde_json::Value;

/// The largest number of any kind that a config may name: keeps products inside 64 bits.
const MAX_SIZE: u64 = 1 << 20;

/// The fields of one file.
pub struct Fields<'a> {
    /// E.g. `unet/config.json`.
    pub file: &'a str,
    pub json: &'a Value,
}

impl Fields<'_> {
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.json.get(name).filter(|value| !value.is_null())
    }

    /// "unet/config.json: in_channels is -4; …"
    pub fn refuse(&self, name: &str, why: &str) -> PredictError {
        let value = self.json.get(name).unwrap_or(&Value::Null);
        PredictError::Operator(format!("{}: {name} is {value}; {why}", self.file))
    }

    fn size_of(&self, name: &str, value: &Value) -> Result<usize, PredictError> {
        let size = value.as_u64().filter(|size| (1..=MAX_SIZE).contains(size));
        size.map(|size| size as usize).ok_or_else(|| self.refuse(name, &format!("numbers of 1 to {MAX_SIZE} are run")))
    }

    pub fn size(&self, name: &str) -> Result<usize, PredictError> {
        self.size_of(name, self.json.get(name).unwrap_or(&Value::Null))
    }

    pub fn size_or(&self, name: &str, usual: usize) -> Result<usize, PredictError> {
        self.get(name).map_or(Ok(usual), |value| self.size_of(name, value))
    }

    /// A list of sizes.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, PredictError> {
        let list = self.json.get(name).and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| self.refuse(name, "a list of numbers is needed"))?;
        list.iter().map(|value| self.size_of(name, value)).collect()
    }

    /// One size per level; a single one stands for all.
    pub fn per_level(&self, name: &str, usual: usize, levels: usize) -> Result<Vec<usize>, PredictError> {
        let sizes = match self.get(name) {
            Some(Value::Array(_)) => self.sizes(name)?,
            _ => vec![self.size_or(name, usual)?; levels],
        };
        if sizes.len() != levels {
            return Err(self.refuse(name, &format!("there are {levels} levels")));
        }
        Ok(sizes)
    }

    pub fn number_or(&self, name: &str, usual: f64) -> Result<f64, PredictError> {
        let Some(value) = self.get(name) else { return Ok(usual) };
        value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| self.refuse(name, "a number is needed"))
    }

    pub fn truth_or(&self, name: &str, usual: bool) -> Result<bool, PredictError> {
        let Some(value) = self.get(name) else { return Ok(usual) };
        value.as_bool().ok_or_else(|| self.refuse(name, "true or false is needed"))
    }

    /// A list of names, one per level.
    pub fn names(&self, name: &str, levels: usize) -> Result<Vec<&str>, PredictError> {
        let list = self.json.get(name).and_then(Value::as_array).filter(|list| list.len() == levels);
        let names = list.and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        names.ok_or_else(|| self.refuse(name, &format!("{levels} names are needed, one per level")))
    }

    /// Fields that change the arithmetic and are run with one value only; one that is left out has it.
    pub fn only(&self, table: &[(&str, Value)]) -> Result<(), PredictError> {
        for (name, run) in table {
            let value = self.json.get(name).unwrap_or(run);
            let alike = value == run || value.as_f64().is_some_and(|number| run.as_f64() == Some(number));
            if !alike {
                return Err(self.refuse(name, &format!("{run} is run")));
            }
        }
        Ok(())
    }
}
