//! Finds DPDK by pkg-config, compiles the shim, generates the bindings.

use std::{env, panic, path::PathBuf};

/// Everything `dpdk` uses. No patterns but `shim_`: `rte_.*` would be 25,000 lines.
const FUNCTIONS: &[&str] = &[
    "shim_.*",
    "rte_dev_probe",
    "rte_dev_remove",
    "rte_eal_get_runtime_dir",
    "rte_eal_init",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_dev_close",
    "rte_eth_dev_default_mac_addr_set",
    "rte_eth_dev_get_mtu",
    "rte_eth_dev_get_name_by_port",
    "rte_eth_dev_set_mtu",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_find_next_owned_by",
    "rte_eth_macaddr_get",
    "rte_eth_promiscuous_disable",
    "rte_eth_promiscuous_enable",
    "rte_eth_rx_queue_setup",
    "rte_eth_stats_get",
    "rte_eth_tx_queue_setup",
    "rte_log_cur_msg_loglevel",
    "rte_mempool_avail_count",
    "rte_pktmbuf_free_bulk",
    "rte_pktmbuf_pool_create",
    "rte_thread_register",
    "rte_thread_unregister",
    "rte_version",
];
/// Every other type in a signature is known by pointer only, and declared in `lib.rs`.
const TYPES: &[&str] =
    &["rte_eth_stats", "rte_ether_addr", "shim_mbuf_offset", "shim_port_info", "shim_write"];
const CONSTANTS: &[&str] =
    &["SHIM_.*", "RTE_ETH_NAME_MAX_LEN", "RTE_LOG_.*", "RTE_MAX_ETHPORTS", "SOCKET_ID_ANY"];

fn main() {
    println!("cargo:rerun-if-changed=src/shim.h");
    println!("cargo:rerun-if-changed=src/shim.c");
    if let Err(reason) = build() {
        // Fails the build, in one line; exiting with an error would add many.
        println!(
            "cargo::error=no DPDK 22.11 or later to build with: `apt-get install libdpdk-dev \
             libclang-dev` ({reason})"
        );
    }
}

fn build() -> Result<(), String> {
    pkg_config::Config::new()
        .atleast_version("22.11")
        .probe("libdpdk")
        .map_err(|_| "pkg-config does not find libdpdk")?;
    let cflags = cflags()?;

    let mut shim = cc::Build::new();
    // -march comes with the flags: what DPDK itself was compiled for.
    shim.file("src/shim.c").opt_level(3).extra_warnings(false);
    for flag in &cflags {
        shim.flag(flag);
    }
    shim.try_compile("dpdk_shim").map_err(|error| one_line(&error.to_string()))?;

    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    // bindgen panics where libclang is missing.
    panic::set_hook(Box::new(|_| ()));
    panic::catch_unwind(|| bindings(&cflags))
        .map_err(|_| "libclang cannot be loaded".to_owned())??
        .write_to_file(PathBuf::from(out).join("bindings.rs"))
        .map_err(|error| error.to_string())
}

/// All of pkg-config's flags: `-include rte_config.h` and `-march` decide layouts.
fn cflags() -> Result<Vec<String>, String> {
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = std::process::Command::new(program)
        .args(["--cflags", "libdpdk"])
        .output()
        .map_err(|error| error.to_string())?;
    let flags = String::from_utf8(output.stdout).map_err(|error| error.to_string())?;
    Ok(flags.split_whitespace().map(str::to_owned).collect())
}

fn bindings(cflags: &[String]) -> Result<bindgen::Bindings, String> {
    let mut builder = bindgen::Builder::default()
        .header("src/shim.h")
        .clang_args(cflags)
        // Builds anew when a header changes: DPDK was upgraded.
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(true)
        .derive_default(true)
        .no_default("shim_port_info")
        .merge_extern_blocks(true)
        .allowlist_recursively(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .wrap_unsafe_ops(true);
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    builder.generate().map_err(|error| one_line(&error.to_string()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
