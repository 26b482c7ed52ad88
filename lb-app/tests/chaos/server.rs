//! A backend's process: answers each line with its name, how many lines this connection had, and the
//! line.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::decap::{self, Decapsulated};
use crate::process::{allow_open_files, runtime};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What it calls itself.
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) port: u16,
    /// Whether packets come through a tunnel.
    #[arg(long)]
    pub(crate) tunnel: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    allow_open_files();
    runtime().block_on(async {
        if args.tunnel {
            decap::start(&Arc::new(Decapsulated::default()));
        }
        let listener = TcpListener::bind(("0.0.0.0", args.port)).await.expect("the port is free");
        // Whoever started this waits for it.
        println!("ready");
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let name = args.name.clone();
                tokio::spawn(async move { echo(&name, stream).await });
            }
        }
    })
}

async fn echo(name: &str, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::with_capacity(256, reader).lines();
    let mut count = 0_u64;
    while let Some(line) = lines.next_line().await? {
        count += 1;
        writer.write_all(format!("{name} {count} {line}\n").as_bytes()).await?;
    }
    Ok(())
}
