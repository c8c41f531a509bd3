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
    properties.insert("transport".to_owned(), array_of(one_of(modules, "transport", "trtype")));
    let definitions: Map<String, Value> = modules.iter().flat_map(definitions).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tenon configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "$defs": definitions,
    })
}

/// The keys a module knows in its `[[bdev]]` tables, if it says.
#[must_use]
pub fn bdev_keys(schema: &Value) -> Option<Vec<String>> {
    keys(schema, "bdev")
}

/// The keys a transport knows in its `[[transport]]` table, if it says.
#[must_use]
pub fn transport_keys(schema: &Value) -> Option<Vec<String>> {
    keys(schema, "transport")
}

/// The keys a module knows in its `[[module]]` table, if it says.
#[must_use]
pub fn module_keys(schema: &Value) -> Option<Vec<String>> {
    keys(schema, "module")
}

fn keys(schema: &Value, kind: &str) -> Option<Vec<String>> {
    let properties = part(schema, kind)?.get("properties")?.as_object()?;
    Some(properties.keys().cloned().collect())
}

/// What a module says of `part`, followed to its definition.
fn part<'a>(schema: &'a Value, part: &str) -> Option<&'a Value> {
    let said = schema.pointer(&format!("/properties/{part}"))?;
    match said.get("$ref").and_then(Value::as_str) {
        Some(reference) => schema.pointer(reference.strip_prefix('#')?),
        None => Some(said),
    }
}

/// The definitions of a module under names of its own, as two modules may use one name for two things.
fn definitions(module: &ModuleSchema) -> Vec<(String, Value)> {
    let own = module.schema.get("$defs").and_then(Value::as_object);
    let renamed = |(name, value): (&String, &Value)| {
        let mut value = value.clone();
        rename_references(&mut value, &module.name);
        (format!("{}.{name}", module.name), value)
    };
    own.into_iter().flatten().map(renamed).collect()
}

fn rename_references(value: &mut Value, module: &str) {
    match value {
        Value::Object(table) => {
            for (key, value) in table.iter_mut() {
                match value {
                    Value::String(reference) if key == "$ref" => {
                        *reference = reference.replacen("#/$defs/", &format!("#/$defs/{module}."), 1);
                    }
                    _ => rename_references(value, module),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| rename_references(value, module)),
        _ => {}
    }
}

fn array_of(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// A table that names its module under `tag` and otherwise holds what that module says of `part`.
fn one_of(modules: &[ModuleSchema], kind: &str, tag: &str) -> Value {
    let variants: Vec<Value> = modules
        .iter()
        .filter_map(|module| {
            let mut table = part(&module.schema, kind)?.clone();
            rename_references(&mut table, &module.name);
            let own =
                table.as_object_mut()?.entry("properties").or_insert_with(|| json!({})).as_object_mut()?;
            let name = match kind {
                // The word operators use for it, in any case of its letters.
                "transport" => module.name.strip_prefix("transport_")?.to_uppercase(),
                _ => module.name.clone(),
            };
            own.insert(tag.to_owned(), json!({ "const": name }));
            own.extend(host_keys(kind));
            Some(table)
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
        "module" => Map::from_iter([("required".to_owned(), json!({ "type": "boolean" }))]),
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_keys_stand_beside_the_hosts() {
        let schema = json!({
            "properties": { "bdev": { "$ref": "#/$defs/Params" } },
            "$defs": {
                "Params": {
                    "type": "object", "required": ["name"],
                    "properties": { "name": { "type": "string" }, "size": { "$ref": "#/$defs/ByteSize" } },
                },
                "ByteSize": { "type": "integer" },
            },
        });
        assert_eq!(bdev_keys(&schema), Some(vec!["name".to_owned(), "size".to_owned()]));
        let whole = of_file(&[ModuleSchema { name: "null".to_owned(), schema }]);
        let table = &whole["properties"]["bdev"]["items"]["oneOf"][0];
        assert_eq!(table["properties"]["module"], json!({ "const": "null" }));
        assert_eq!(table["required"], json!(["name"]));
        assert_eq!(table["properties"]["size"], json!({ "$ref": "#/$defs/null.ByteSize" }));
        assert_eq!(whole["$defs"]["null.ByteSize"], json!({ "type": "integer" }));
        assert!(table["properties"]["qos"].is_object() && whole["properties"]["host"].is_object());
    }
}
