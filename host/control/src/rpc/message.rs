//! Requests and replies of JSON-RPC 2.0 as values. An error carries what
//! programs need (`code`: a JSON-RPC code or `-errno`) and what people need
//! (`data`: object, reason, cause).

use serde_json::{Map, Value, json};
use tenon_bdev::OpError;

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `None` for a notification, which is not answered.
    pub id: Option<Value>,
    /// Method name.
    pub method: String,
    /// An object, or an empty one if absent.
    pub params: Value,
}

/// Most calls of one batch, whose replies are all kept until the last is there.
pub const MAX_BATCH_CALLS: usize = 64;

/// What a text holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// One call, or the error to answer it with.
    Single(Result<Request, (Value, RpcError)>),
    /// A batch, answered as one array.
    Batch(Vec<Result<Request, (Value, RpcError)>>),
}

/// The error of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcError {
    /// JSON-RPC error code, or `-errno`.
    pub code: i32,
    /// What a program prints: object and reason in one line.
    pub message: String,
    /// `{object, reason, cause}`, or null.
    pub data: Value,
}

impl RpcError {
    /// The text is no JSON.
    pub const PARSE_ERROR: i32 = -32700;
    /// The JSON is no request.
    pub const INVALID_REQUEST: i32 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// The parameters do not fit the method.
    pub const INVALID_PARAMS: i32 = -32602;
    /// A fault of this process.
    pub const INTERNAL: i32 = -32603;

    /// An error about `object`.
    #[must_use]
    pub fn new(code: i32, object: &str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        let message = if object.is_empty() { reason.clone() } else { format!("{object}: {reason}") };
        RpcError { code, message, data: json!({ "object": object, "reason": reason, "cause": "" }) }
    }

    /// Parameters that do not fit `method`.
    #[must_use]
    pub fn invalid_params(method: &str, reason: impl Into<String>) -> Self {
        Self::new(Self::INVALID_PARAMS, method, reason)
    }
}

impl From<OpError> for RpcError {
    fn from(error: OpError) -> Self {
        let mut this = RpcError::new(error.code, &error.object, error.reason);
        if !error.cause.is_empty() {
            this.message = format!("{}: {}", this.message, error.cause);
            this.data["cause"] = Value::String(error.cause);
        }
        this
    }
}

/// Reads one JSON text.
#[must_use]
pub fn parse(text: &[u8]) -> Incoming {
    match serde_json::from_slice::<Value>(text) {
        Err(error) => {
            Incoming::Single(Err((Value::Null, RpcError::new(RpcError::PARSE_ERROR, "", error.to_string()))))
        }
        Ok(Value::Array(calls)) if calls.len() > MAX_BATCH_CALLS => {
            let reason =
                format!("a batch holds at most {MAX_BATCH_CALLS} calls, this one has {}", calls.len());
            Incoming::Single(Err((Value::Null, RpcError::new(RpcError::INVALID_REQUEST, "request", reason))))
        }
        Ok(Value::Array(calls)) if !calls.is_empty() => {
            Incoming::Batch(calls.into_iter().map(request).collect())
        }
        Ok(value) => Incoming::Single(request(value)),
    }
}

/// The text of a reply, without a trailing newline.
#[must_use]
pub fn reply_text(id: &Value, result: Result<Value, RpcError>) -> Value {
    match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(RpcError { code, message, data }) => {
            let mut error =
                Map::from_iter([("code".to_owned(), json!(code)), ("message".to_owned(), json!(message))]);
            if !data.is_null() {
                error.insert("data".to_owned(), data);
            }
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        }
    }
}

fn request(value: Value) -> Result<Request, (Value, RpcError)> {
    let invalid = |id: Option<Value>, reason: &str| {
        Err((id.unwrap_or(Value::Null), RpcError::new(RpcError::INVALID_REQUEST, "request", reason)))
    };
    let Value::Object(mut fields) = value else {
        return invalid(None, "must be a JSON object");
    };
    let id = fields.remove("id");
    if !matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_))) {
        return invalid(None, "id must be a string, a number or null");
    }
    if fields.get("jsonrpc") != Some(&Value::String("2.0".to_owned())) {
        return invalid(id, "jsonrpc must be \"2.0\"");
    }
    let Some(Value::String(method)) = fields.remove("method") else {
        return invalid(id, "method must be a string");
    };
    match fields.remove("params") {
        None | Some(Value::Null) => Ok(Request { id, method, params: Value::Object(Map::new()) }),
        Some(params @ Value::Object(_)) => Ok(Request { id, method, params }),
        Some(Value::Array(list)) if list.is_empty() => {
            Ok(Request { id, method, params: Value::Object(Map::new()) })
        }
        Some(_) => {
            let error = RpcError::invalid_params(&method, "params must be an object: parameters go by name");
            Err((id.unwrap_or(Value::Null), error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_error(text: &str, id: Value, code: i32) {
        match parse(text.as_bytes()) {
            Incoming::Single(Err((found, error))) => assert_eq!((found, error.code), (id, code), "{text}"),
            other => panic!("{text} gave {other:?}"),
        }
    }

    #[test]
    fn a_call_without_params_gets_an_empty_object() {
        let Incoming::Single(Ok(request)) = parse(br#"{"jsonrpc":"2.0","id":7,"method":"m"}"#) else {
            panic!("no request");
        };
        assert_eq!(request, Request { id: Some(json!(7)), method: "m".to_owned(), params: json!({}) });
    }

    #[test]
    fn malformed_requests_get_the_code_of_the_standard() {
        check_error("{", Value::Null, RpcError::PARSE_ERROR);
        check_error("[]", Value::Null, RpcError::INVALID_REQUEST);
        check_error(r#"{"id":1,"method":"m"}"#, json!(1), RpcError::INVALID_REQUEST);
        check_error(r#"{"jsonrpc":"2.0","id":1}"#, json!(1), RpcError::INVALID_REQUEST);
        check_error(r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, Value::Null, RpcError::INVALID_REQUEST);
        check_error(
            r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}"#,
            json!(1),
            RpcError::INVALID_PARAMS,
        );
    }

    #[test]
    fn a_batch_keeps_good_calls_beside_bad_ones() {
        let Incoming::Batch(calls) = parse(br#"[{"jsonrpc":"2.0","method":"n"}, 5]"#) else {
            panic!("no batch");
        };
        assert!(matches!(&calls[0], Ok(Request { id: None, .. })));
        assert!(matches!(&calls[1], Err((Value::Null, RpcError { code: RpcError::INVALID_REQUEST, .. }))));
    }

    #[test]
    fn a_batch_has_a_bound() {
        let batch = |calls: usize| {
            parse(
                Value::from(vec![json!({ "jsonrpc": "2.0", "id": 1, "method": "m" }); calls])
                    .to_string()
                    .as_bytes(),
            )
        };
        assert!(matches!(batch(MAX_BATCH_CALLS), Incoming::Batch(calls) if calls.len() == MAX_BATCH_CALLS));
        let Incoming::Single(Err((Value::Null, error))) = batch(MAX_BATCH_CALLS + 1) else {
            panic!("a batch beyond the bound is refused as a whole");
        };
        assert_eq!(error.code, RpcError::INVALID_REQUEST);
        assert!(error.message.contains("64") && error.message.contains("65"), "{error:?}");
    }

    #[test]
    fn an_error_reply_carries_object_reason_and_cause() {
        let text = reply_text(&json!("x"), Err(RpcError::new(-17, "m0", "name is taken")));
        assert_eq!(text["error"]["code"], -17);
        assert_eq!(text["error"]["message"], "m0: name is taken");
        assert_eq!(text["error"]["data"]["object"], "m0");
    }
}
