//! The API's messages and services, from `proto/`. No `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

/// Fields that hold an enumeration's number, which JSON shows by its name.
const ENUMERATIONS: &[(&str, &str)] = &[
    ("BackendPlan.action", "Action"),
    ("Service.source", "Source"),
    ("SourceStatus.kind", "Source"),
    ("ServicePlan.action", "Action"),
    ("Backend.state", "BackendState"),
    ("Backend.health", "Health"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    // For the reflection service, which tells of the balancer's own.
    let served = protox::compile(["weir/v1/balancer.proto"], ["proto"])?;
    let set = PathBuf::from(env::var("OUT_DIR")?).join("weir.v1.bin");
    fs::write(set, served.encode_to_vec())?;
    let all = ["weir/v1/balancer.proto", "weir/v1/feed.proto"];
    let descriptors = protox::compile(all, ["proto"])?;
    let mut builder = tonic_prost_build::configure()
        .message_attribute(".", "#[derive(serde::Serialize)]")
        .enum_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]");
    for (field, kind) in ENUMERATIONS {
        let by_name = format!("#[serde(serialize_with = \"super::by_name::<{kind}, _>\")]");
        builder = builder.field_attribute(format!("weir.v1.{field}"), by_name);
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
