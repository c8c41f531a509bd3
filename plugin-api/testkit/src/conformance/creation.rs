//! Checks of create and of what a module says about itself: failures that
//! leave nothing behind, saved parameters, JSON, schema.

use serde_json::Value;
use tenon_abi::{ClaimKind, errno};

use super::bench::{Bench, ensure, explains_itself};
use super::{Pass, Verdict};
use crate::consumer::Access;

/// The device is there under its name, with a sane declaration.
pub(super) fn identity(bench: &Bench) -> Verdict {
    let info = bench.info()?;
    ensure!(!info.product.is_empty(), "the device states no product");
    ensure!(info.state == tenon_abi::BdevState::READY, "after create the device is {:?}", info.state);
    ensure!(info.io_types != 0, "the device declares no operation");
    ensure!(info.uuid != [0; 16], "the device has no UUID");
    Ok(Pass::Ok)
}

/// The parameters that the schema says a create must have; `None` if there is no schema.
fn required(bench: &Bench) -> Option<Vec<String>> {
    let schema: Value = serde_json::from_str(&bench.host.schema(bench.module)?).ok()?;
    let bdev = follow(&schema, schema.pointer("/properties/bdev")?);
    let names = bdev.get("required").and_then(Value::as_array);
    Some(names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// Parameters that are no JSON, no object, lack a required one, have an unknown or a mistyped one.
pub(super) fn malformed_parameters(bench: &Bench) -> Verdict {
    let good: Value =
        serde_json::from_str(&bench.suite.create_json).map_err(|error| format!("suite: {error}"))?;
    let good = good.as_object().ok_or("suite: the parameters are no object")?;
    let mut texts = vec![String::new(), "{".to_owned(), "[]".to_owned()];
    let required = required(bench).unwrap_or_else(|| vec!["name".to_owned()]);
    for key in &required {
        let mut lacking = good.clone();
        lacking.remove(key);
        texts.push(Value::Object(lacking).to_string());
    }
    for (key, value) in [("no_such_parameter", Value::from(1)), ("name", Value::from(17))] {
        let mut wrong = good.clone();
        wrong.insert(key.to_owned(), value);
        texts.push(Value::Object(wrong).to_string());
    }
    for text in &texts {
        let error = match bench.host.create(bench.module, text) {
            Ok(names) => return Err(format!("create with `{text}` succeeded: {names:?}")),
            Err(error) => error,
        };
        explains_itself(&error)?;
        bench.nothing_is_left(&format!("create with `{text}`"))?;
    }
    bench.create_device().map_err(|error| format!("create after failed ones: {error}"))?;
    Ok(Pass::Ok)
}

/// A second create of the same name fails and leaves the first alone.
pub(super) fn duplicate_name(bench: &Bench) -> Verdict {
    let opened = bench.open()?;
    let error = match bench.create_device() {
        Ok(names) => return Err(format!("a second create of the same name succeeded: {names:?}")),
        Err(error) => error,
    };
    explains_itself(&error)?;
    let is_right = [errno::EEXIST, errno::EPERM, errno::EBUSY].contains(&error.code);
    ensure!(is_right, "a second create of the same name gave {} ({error})", error.code);
    opened.close()?;
    bench.works(&bench.name)?;
    bench.host.delete(&bench.name).map_err(|error| format!("delete: {error}"))?;
    bench.nothing_is_left("a refused second create and a delete")?;
    Ok(Pass::Ok)
}

/// A name that another module's device has is refused late, after the bases are open; nothing is left behind.
pub(super) fn name_taken(bench: &Bench) -> Verdict {
    if bench.name.is_empty() {
        return Ok(Pass::Skip("the parameters state no name".to_owned()));
    }
    let other = bench.host.add_base(crate::base::BaseSpec::new(&bench.name, 512, 64));
    let error = match bench.create_device() {
        Ok(names) => return Err(format!("create with a name that is taken succeeded: {names:?}")),
        Err(error) => error,
    };
    explains_itself(&error)?;
    ensure!(error.code == errno::EEXIST, "create with a name that is taken gave: {error}");
    other.remove();
    bench.wait_gone(&bench.name)?;
    bench.nothing_is_left("a create with a name that is taken")?;
    bench.create_device().map_err(|error| format!("create when the name is free: {error}"))?;
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

/// A missing base is `-ENODEV` with the base's name; when it is there, the same request succeeds.
pub(super) fn missing_base(bench: &Bench) -> Verdict {
    if bench.bases.is_empty() {
        return Ok(Pass::Skip("the device has no bases".to_owned()));
    }
    if bench.suite.waits_for_bases {
        return Ok(Pass::Skip("the module waits for bases".to_owned()));
    }
    for (base, spec) in bench.bases.iter().zip(&bench.suite.bases) {
        base.remove();
        bench.wait_gone(base.name())?;
        let error = match bench.create_device() {
            Ok(names) => return Err(format!("create without base `{}` succeeded: {names:?}", base.name())),
            Err(error) => error,
        };
        let is_right = error.code == errno::ENODEV && error.object == base.name();
        ensure!(is_right, "create without base `{}` gave: {error}", base.name());
        bench.nothing_is_left("a create without its base")?;
        bench.host.add_base(spec.clone());
    }
    bench.create_device().map_err(|error| format!("create when the bases are there: {error}"))?;
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

/// A base that somebody else owns is refused, and nothing is left behind.
pub(super) fn claimed_base(bench: &Bench) -> Verdict {
    let Some(base) = bench.bases.last() else { return Ok(Pass::Skip("the device has no bases".to_owned())) };
    let owner = bench.host.open(base.name(), Access::Write).map_err(|code| format!("open gave {code}"))?;
    ensure!(owner.claim(ClaimKind::EXCL_WRITE, 0) == 0, "the test could not claim base `{}`", base.name());
    let reply = bench.create_device();
    owner.close();
    match reply {
        Ok(_) if bench.suite.waits_for_bases => return Ok(Pass::Ok),
        Ok(names) => return Err(format!("create on a base that is claimed succeeded: {names:?}")),
        Err(error) => explains_itself(&error)?,
    };
    bench.nothing_is_left("a create on a claimed base")?;
    bench.create_device().map_err(|error| format!("create when the base is free: {error}"))?;
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

/// A device created from its saved parameters is the same device.
pub(super) fn config_round_trip(bench: &Bench) -> Verdict {
    let before = bench.info()?;
    let saved = bench.host.config(&bench.name).ok_or("the device has no parameters to save")?;
    let value: Value =
        serde_json::from_str(&saved).map_err(|error| format!("saved parameters {saved}: {error}"))?;
    ensure!(value.is_object(), "saved parameters are no object: {saved}");
    bench.host.delete(&bench.name).map_err(|error| format!("delete: {error}"))?;
    let names =
        bench.host.create(bench.module, &saved).map_err(|error| format!("create from {saved}: {error}"))?;
    ensure!(names.contains(&bench.name), "create from {saved} gave {names:?}");
    let mut after = bench.info()?;
    // A UUID that the host made up differs; one that the module stated must not, which saved parameters show.
    if !saved.contains(&crate::host::device::format_uuid(&before.uuid)) {
        after.uuid = before.uuid;
    }
    ensure!(after == before, "created from {saved} the device is {after:?} instead of {before:?}");
    let again = bench.host.config(&bench.name).unwrap_or_default();
    let again: Value = serde_json::from_str(&again).map_err(|error| format!("saved again: {error}"))?;
    ensure!(again == value, "saved again the parameters are {again} instead of {value}");
    bench.works(&bench.name)?;
    Ok(Pass::Ok)
}

/// `driver_specific` is a JSON object, and so are the device's own statistics.
pub(super) fn dump_json(bench: &Bench) -> Verdict {
    let told = [
        ("driver_specific", bench.host.driver_specific(&bench.name)),
        ("statistics", bench.host.driver_statistics(&bench.name)),
    ];
    if told.iter().all(|(_, text)| text.is_none()) {
        return Ok(Pass::Skip("the device writes no driver_specific".to_owned()));
    }
    for (what, text) in told {
        let Some(text) = text else { continue };
        let value: Value = serde_json::from_str(&text).map_err(|error| format!("{what} {text}: {error}"))?;
        ensure!(value.is_object(), "{what} is no object: {text}");
    }
    Ok(Pass::Ok)
}

/// The schema is a JSON Schema whose `properties.bdev` knows the parameters of the suite.
pub(super) fn schema(bench: &Bench) -> Verdict {
    let Some(text) = bench.host.schema(bench.module) else {
        return Ok(Pass::Skip("the module publishes no schema".to_owned()));
    };
    let schema: Value =
        serde_json::from_str(&text).map_err(|error| format!("the schema is no JSON: {error}"))?;
    check_schema(&schema, "schema")?;
    let bdev = schema.pointer("/properties/bdev").ok_or("the schema has no properties.bdev")?;
    let known = follow(&schema, bdev).get("properties").and_then(Value::as_object);
    let params: Value = serde_json::from_str(&bench.suite.create_json).map_err(|error| error.to_string())?;
    let (Some(known), Some(params)) = (known, params.as_object()) else {
        return Ok(Pass::Ok);
    };
    for key in params.keys() {
        ensure!(known.contains_key(key), "the schema does not know the parameter `{key}`");
    }
    Ok(Pass::Ok)
}

/// What a `$ref` within the schema points to.
fn follow<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let target = node.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
    target.and_then(|path| root.pointer(path)).unwrap_or(node)
}

/// The keywords of a (sub)schema have the shapes that JSON Schema gives them.
fn check_schema(node: &Value, path: &str) -> Result<(), String> {
    let object = match node {
        Value::Bool(_) => return Ok(()),
        Value::Object(object) => object,
        other => return Err(format!("{path} is no schema: {other}")),
    };
    const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "string", "integer"];
    let is_type = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    for (key, value) in object {
        let place = format!("{path}.{key}");
        let is_right = match key.as_str() {
            "type" => is_type(value) || value.as_array().is_some_and(|all| all.iter().all(is_type)),
            "properties" | "$defs" | "definitions" | "patternProperties" => value.is_object(),
            "required" => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
            "enum" | "allOf" | "anyOf" | "oneOf" => value.as_array().is_some_and(|all| !all.is_empty()),
            "$ref" | "$schema" | "title" | "description" | "format" | "pattern" => value.is_string(),
            _ => true,
        };
        ensure!(is_right, "{place} has the wrong shape: {value}");
        match key.as_str() {
            "properties" | "$defs" | "definitions" | "patternProperties" => {
                for (name, child) in value.as_object().into_iter().flatten() {
                    check_schema(child, &format!("{place}.{name}"))?;
                }
            }
            "allOf" | "anyOf" | "oneOf" => {
                for child in value.as_array().into_iter().flatten() {
                    check_schema(child, &place)?;
                }
            }
            "items" | "additionalProperties" | "not" => check_schema(value, &place)?,
            _ => {}
        }
    }
    Ok(())
}

/// Parameters are checked without creating anything.
pub(super) fn validate(bench: &Bench) -> Verdict {
    let Some(answer) = bench.host.validate(bench.module, &bench.suite.create_json) else {
        return Ok(Pass::Skip("the module validates no parameters".to_owned()));
    };
    ensure!(answer.is_ok(), "validate refuses the parameters of the suite: {answer:?}");
    for text in ["{", "[]", r#"{"no_such_parameter":1}"#] {
        match bench.host.validate(bench.module, text) {
            Some(Err((code, reason))) => {
                ensure!(code < 0 && !reason.is_empty(), "validate of {text} gives {code} and `{reason}`");
            }
            Some(Ok(())) | None => return Err(format!("validate accepts {text}")),
        }
    }
    bench.nothing_is_left("validate")?;
    Ok(Pass::Ok)
}
