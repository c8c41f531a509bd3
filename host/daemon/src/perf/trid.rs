//! The address of an NVMe-oF controller as words `key:value`, as operators of
//! other tools write it.

use std::fmt;

use serde_json::{Map, Value};

/// A controller to attach: parameters of `bdev_nvme_attach_controller` but for its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Trid(Map<String, Value>);

impl Trid {
    /// The parameters, for a controller of this name.
    pub fn params(&self, name: &str) -> Value {
        let mut params = self.0.clone();
        params.insert("name".to_owned(), name.into());
        Value::Object(params)
    }
}

impl fmt::Display for Trid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |key: &str| self.0.get(key).and_then(Value::as_str).unwrap_or_default();
        write!(f, "{} {} {}", text("trtype"), text("traddr"), text("subnqn"))
    }
}

/// Reads words like `trtype:TCP traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.…`.
pub fn parse(text: &str) -> Result<Trid, String> {
    let mut params = Map::new();
    for word in text.split_whitespace() {
        let Some((key, value)) = word.split_once(':') else {
            return Err(format!("`{word}`: must be like traddr:127.0.0.1"));
        };
        // What is a number or a boolean by name is one by value; addresses and services are text.
        let value = match key {
            "trtype" | "adrfam" | "traddr" | "trsvcid" | "subnqn" | "hostnqn" | "hostaddr" | "hostsvcid"
            | "priority" => value.into(),
            _ => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
        };
        if params.insert(key.to_owned(), value).is_some() {
            return Err(format!("`{key}` is given twice"));
        }
    }
    for key in ["trtype", "traddr", "subnqn"] {
        if !params.contains_key(key) {
            return Err(format!(
                "lacks `{key}`: must be like trtype:TCP traddr:127.0.0.1 trsvcid:4420 subnqn:NQN"
            ));
        }
    }
    Ok(Trid(params))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_become_parameters_and_an_nqn_keeps_its_colons() {
        let trid =
            parse("trtype:TCP traddr:::1 trsvcid:4420 subnqn:nqn.2026-01.io.tenon:one hdgst:true").unwrap();
        let expected = json!({
            "name": "nvme0", "trtype": "TCP", "traddr": "::1", "trsvcid": "4420",
            "subnqn": "nqn.2026-01.io.tenon:one", "hdgst": true,
        });
        assert_eq!(trid.params("nvme0"), expected);
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_word() {
        check("trtype:TCP traddr", "`traddr`");
        check("trtype:TCP traddr:1.2.3.4", "lacks `subnqn`");
        check("trtype:TCP trtype:TCP", "`trtype` is given twice");
    }
}
