//! The other end of the control socket: `tenon rpc`, and what `tenon status`
//! asks with.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};

use crate::cli::RpcArgs;
use crate::exit::{Exit, FAILURE, UNAVAILABLE};

/// A connection to a running host.
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    next_id: u64,
    timeout: Duration,
}

/// `tenon rpc`: prints the result as JSON.
pub fn rpc(args: &RpcArgs) -> anyhow::Result<()> {
    let params = match &args.params {
        None => json!({}),
        Some(text) => {
            serde_json::from_str(text).with_context(|| format!("parameters `{text}` are no JSON"))?
        }
    };
    if !params.is_object() {
        bail!("parameters must be a JSON object, e.g. '{{\"name\": \"m0\"}}'");
    }
    let mut client = Client::connect(&args.socket.rpc_socket, Duration::from_secs(args.timeout))?;
    let result = client.call(&args.method, params)?;
    crate::exit::end_with_reader();
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}

impl Client {
    /// Connects to the host at `path`.
    pub fn connect(path: &Path, timeout: Duration) -> anyhow::Result<Client> {
        let stream = UnixStream::connect(path).map_err(|error| {
            Exit::new(
                UNAVAILABLE,
                format!("no host answers at {}: {error}; is `tenon run` running?", path.display()),
            )
        })?;
        Ok(Client { stream, path: path.to_owned(), next_id: 1, timeout })
    }

    /// Calls a method and waits for its result.
    pub fn call(&mut self, method: &str, params: Value) -> anyhow::Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let path = self.path.display().to_string();
        self.stream
            .write_all(request.to_string().as_bytes())
            .with_context(|| format!("cannot write to {path}"))?;
        let mut reply = self.receive(method)?;
        if let Some(error) = reply.get("error") {
            let message = error["message"].as_str().unwrap_or("unknown error").to_owned();
            return Err(Exit::new(FAILURE, format!("{method}: {message} (code {})", error["code"])).into());
        }
        Ok(reply["result"].take())
    }

    fn receive(&mut self, method: &str) -> anyhow::Result<Value> {
        let deadline = Instant::now() + self.timeout;
        let mut framer = tenon_control::rpc::Framer::default();
        let mut bytes = [0; 64 << 10];
        loop {
            if let Some(text) = framer.next_frame()? {
                return serde_json::from_slice(&text).context("the host's answer is no JSON");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{method}: no answer within {:?}", self.timeout);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(anyhow!("{method}: the host closed the connection")),
                Ok(count) => framer.push(&bytes[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error).with_context(|| format!("{method}: cannot read the answer")),
            }
        }
    }
}
