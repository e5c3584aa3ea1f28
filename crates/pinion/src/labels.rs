//! What an image says of the model inside, as `cog run IMAGE` and registries of Cog images read it: labels, written as an
//! instruction of a Dockerfile. Refuses to know how images are built.

use api::cog;
use schema::ModelSchema;
use schema::config::ConfigError;
use serde_json::Value;

/// `LABEL` with the names that Cog gives them. `yaml` is the whole cog.yaml, `schema` that of the model that it serves.
pub fn instruction(yaml: &str, schema: &ModelSchema) -> Result<String, ConfigError> {
    let labels = [
        ("version", cog::COG_VERSION.to_owned()),
        // Whether the image has an init process, which is its entry point.
        ("has_init", "true".to_owned()),
        // No Python, no packages.
        ("pip_freeze", String::new()),
        ("config", quotable(&schema::config::values(yaml)?)),
        ("openapi_schema", quotable(&cog::document(schema))),
    ];
    let labels = labels.map(|(name, value)| format!("run.cog.{name}='{value}'"));
    Ok(format!("LABEL {}", labels.join(" \\\n      ")))
}

/// Without the quote that ends it: in JSON one stands in texts alone, where it has another spelling.
fn quotable(value: &Value) -> String {
    value.to_string().replace('\'', "\\u0027")
}

#[cfg(test)]
mod tests {
    use schema::{ModelSchema, Output};

    use super::instruction;

    #[test]
    fn a_quote_in_a_text_ends_no_label() {
        let schema = ModelSchema { input: Vec::new(), output: Output::TextIterator };
        let said = instruction("native: { model: llama, description: \"it's \\\"so\\\"\" }", &schema).unwrap();
        let config = said.lines().find_map(|line| line.trim().strip_prefix("run.cog.config='")).unwrap();
        let (config, end) = config.rsplit_once('\'').unwrap();
        assert_eq!((end, config.contains('\'')), (" \\", false), "{said}");
        let read: serde_json::Value = serde_json::from_str(config).unwrap();
        assert_eq!(read["native"]["description"], "it's \"so\"");
        assert!(said.starts_with("LABEL run.cog.version='0."), "{said}");
    }
}
