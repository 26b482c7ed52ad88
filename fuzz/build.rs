//! The messages that the fuzz target `told` decodes. No `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = "../lb-app/proto";
    println!("cargo::rerun-if-changed={folder}");
    let descriptors = protox::compile(["weir/v1/balancer.proto", "weir/v1/feed.proto"], [folder])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
