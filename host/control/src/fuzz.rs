//! What `tests/fuzz` feeds with any bytes: the two readers of this crate whose
//! input others write. Both end for every input, in a value or in an error, and
//! what they read can be written and read again.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{Config, ConfigError};
use crate::rpc::{FrameError, Framer, Incoming, Request, RpcError, parse, reply_text};
use crate::{nvmf_save, save};

/// A configuration file: refused in one line that names the file, or saved as a text that reads as the same.
pub fn fuzz_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let config = match Config::parse(Path::new(FILE), text) {
        Ok(config) => config,
        Err(error) => return check_error(&error),
    };
    let devices = |config: &Config| {
        let entries = config.bdevs.iter();
        entries.map(|entry| (entry.module.clone(), entry.params.value.clone(), entry.qos)).collect::<Vec<_>>()
    };
    let modules = |config: &Config| {
        let entries = config.modules.iter();
        entries
            .map(|entry| (entry.name.clone(), entry.required, entry.options.value.clone()))
            .collect::<Vec<_>>()
    };
    let saved = save::text_of(&config, devices(&config), nvmf_save::tables_of(&config.nvmf));
    let again = Config::parse(Path::new(FILE), &saved)
        .unwrap_or_else(|error| panic!("what was saved cannot be read: {error}\n{saved}"));
    assert_eq!(again.host, config.host, "{saved}");
    assert_eq!(again.plugins, config.plugins, "{saved}");
    assert_eq!(again.metrics, config.metrics, "{saved}");
    assert_eq!(again.bdev, config.bdev, "{saved}");
    assert_eq!(modules(&again), modules(&config), "{saved}");
    assert_eq!(devices(&again), devices(&config), "{saved}");
    assert_eq!(again.nvmf, config.nvmf, "{saved}");
}

fn check_error(error: &ConfigError) {
    let text = error.to_string();
    assert!(text.starts_with(FILE), "no file in: {text}");
    assert!(!text.contains('\n'), "more than one line: {text}");
}

/// Bytes from a client: cut into the same texts however they arrive, each read as calls or answered with an error.
pub fn fuzz_rpc_frame(data: &[u8]) {
    let whole = cut(data, data.len().max(1));
    assert_eq!(whole, cut(data, 1), "cut differently byte by byte");
    assert_eq!(whole, cut(data, 7), "cut differently in pieces of 7");
    let taken: usize = whole.0.iter().map(Vec::len).sum();
    assert!(taken <= data.len(), "more texts than bytes");
    for text in whole.0 {
        match parse(&text) {
            Incoming::Single(call) => check_call(call),
            Incoming::Batch(calls) => calls.into_iter().for_each(check_call),
        }
    }
}

/// The texts in `data` when it arrives in pieces, and how the stream ended.
fn cut(data: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let (mut framer, mut texts) = (Framer::default(), Vec::new());
    for bytes in data.chunks(piece) {
        framer.push(bytes);
        loop {
            match framer.next_frame() {
                Ok(Some(text)) => texts.push(text),
                Ok(None) => break,
                Err(error) => return (texts, Some(error)),
            }
        }
    }
    (texts, None)
}

fn check_call(call: Result<Request, (Value, RpcError)>) {
    match call {
        Ok(request) => {
            assert!(request.params.is_object(), "parameters go by name");
            let mut again = json!({ "jsonrpc": "2.0", "method": request.method, "params": request.params });
            if let Some(id) = &request.id {
                again["id"] = id.clone();
            }
            let read = parse(again.to_string().as_bytes());
            assert_eq!(read, Incoming::Single(Ok(request)), "{again}");
        }
        Err((id, error)) => {
            assert!(error.code < 0 && !error.message.is_empty(), "{error:?}");
            let reply = reply_text(&id, Err(error)).to_string();
            assert!(serde_json::from_str::<Value>(&reply).is_ok(), "{reply}");
        }
    }
}

const FILE: &str = "fuzz.toml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_of_a_configuration_comes_back() {
        fuzz_config(
            br#"
            [host]
            mode = "poll"
            cpus = "0-3"
            [plugins]
            directories = ["/a b", "c\"d"]
            [bdev_options]
            auto_examine = false
            [metrics]
            listen = "127.0.0.1:1"
            [[module]]
            name = "m"
            required = true
            "odd key" = [1, 2.5, { x = [[]] }]
            [[bdev]]
            module = "malloc"
            name = "m0"
            size = "64MiB"
            qos = { rw_ios_per_sec = 1000 }
            "#,
        );
    }

    #[test]
    fn calls_good_and_bad_are_read() {
        fuzz_rpc_frame(br#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":[1,"}"]}} [1,{}] {"id":{}}x"#);
    }
}
