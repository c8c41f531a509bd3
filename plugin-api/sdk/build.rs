//! Tells the SDK which compiler builds it, for `PluginDescV1::built_with`.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "rustc".to_owned(), |text| text.trim().to_owned());
    println!("cargo:rustc-env=TENON_SDK_RUSTC={version}");
}
