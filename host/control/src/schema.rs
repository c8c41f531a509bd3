//! JSON Schema of the whole configuration file: the host's tables and, for
//! every module of the catalog, what that module says of its parameters.

use serde_json::{Map, Value, json};

use crate::config::host_schema;

/// Schema of one module, as its plugin publishes it: `properties.bdev` and `properties.module`.
pub struct ModuleSchema {
    /// Module name.
    pub name: String,
    /// What it publishes.
    pub schema: Value,
}

/// The schema of a configuration file for the given modules.
#[must_use]
pub fn of_file(modules: &[ModuleSchema]) -> Value {
    let mut properties = host_schema();
    properties.insert("module".to_owned(), array_of(one_of(modules, "module", "name")));
    properties.insert("bdev".to_owned(), array_of(one_of(modules, "bdev", "module")));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tenon configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// The keys a module knows in its `[[bdev]]` tables, if it says.
#[must_use]
pub fn bdev_keys(schema: &Value) -> Option<Vec<String>> {
    let properties = schema.pointer("/properties/bdev/properties")?.as_object()?;
    Some(properties.keys().cloned().collect())
}

fn array_of(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// A table that names its module under `tag` and otherwise holds what that module says of `part`.
fn one_of(modules: &[ModuleSchema], part: &str, tag: &str) -> Value {
    let variants: Vec<Value> = modules
        .iter()
        .filter_map(|module| {
            let mut table = module.schema.pointer(&format!("/properties/{part}"))?.as_object()?.clone();
            let own = table.entry("properties").or_insert_with(|| json!({})).as_object_mut()?;
            own.insert(tag.to_owned(), json!({ "const": module.name }));
            own.extend(host_keys(part));
            Some(Value::Object(table))
        })
        .collect();
    json!({ "oneOf": variants })
}

/// Keys the host itself takes from a module's table.
fn host_keys(part: &str) -> Map<String, Value> {
    match part {
        "bdev" => {
            let qos = schemars::schema_for!(crate::config::QosTable).to_value();
            Map::from_iter([("qos".to_owned(), qos)])
        }
        _ => Map::from_iter([("required".to_owned(), json!({ "type": "boolean" }))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_keys_stand_beside_the_hosts() {
        let schema = json!({ "properties": { "bdev": {
            "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"],
        } } });
        assert_eq!(bdev_keys(&schema), Some(vec!["name".to_owned()]));
        let whole = of_file(&[ModuleSchema { name: "null".to_owned(), schema }]);
        let table = &whole["properties"]["bdev"]["items"]["oneOf"][0];
        assert_eq!(table["properties"]["module"], json!({ "const": "null" }));
        assert_eq!(table["required"], json!(["name"]));
        assert!(table["properties"]["qos"].is_object() && whole["properties"]["host"].is_object());
    }
}
