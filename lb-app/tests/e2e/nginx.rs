//! nginx in a namespace: what others make of the PROXY protocol.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{self, Outcome};
use crate::netns::Netns;

/// Where it serves HTTP behind a PROXY header.
pub(crate) const PORT: u16 = 8091;

const PATIENCE: Duration = Duration::from_secs(10);

/// A running nginx, which believes those who come from `trusted` networks, and answers whom it takes its
/// client for, and whom the client wanted. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Nginx {
    child: Child,
    folder: PathBuf,
}

impl Nginx {
    pub(crate) fn start(netns: &Netns, trusted: &[String]) -> Self {
        let folder = std::env::temp_dir().join(netns.name()).with_extension("nginx");
        fs::create_dir_all(folder.join("logs")).expect("the temporary folder can be written");
        let trusted: Vec<_> =
            trusted.iter().map(|net| format!("    set_real_ip_from {net};\n")).collect();
        let trusted = trusted.concat();
        let config = format!(
            "daemon off;\nmaster_process off;\nevents {{}}\nhttp {{\n  access_log off;\n  server {{\n\
             \x20   listen {PORT} proxy_protocol;\n    listen [::]:{PORT} proxy_protocol;\n\
             {trusted}    real_ip_header proxy_protocol;\n\
             \x20   return 200 \"$remote_addr $remote_port \
             $proxy_protocol_server_addr $proxy_protocol_server_port\";\n  }}\n}}\n"
        );
        fs::write(folder.join("nginx.conf"), config).expect("the temporary folder can be written");
        let child = netns
            .command("setpriv")
            .args(["--pdeathsig", "KILL", "nginx", "-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(&folder)
            .args(["-g", "pid nginx.pid;"])
            .stdin(Stdio::null())
            .spawn()
            .expect("ip (Debian package iproute2) is installed");
        let mut nginx = Self { child, folder };
        nginx.wait_for(netns);
        nginx
    }

    fn wait_for(&mut self, netns: &Netns) {
        let end = Instant::now() + PATIENCE;
        while netns.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))).is_err() {
            let is_running = self.child.try_wait().is_ok_and(|status| status.is_none());
            assert!(is_running && Instant::now() < end, "nginx (Debian package) does not start");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Asks the nginx at `to`: the ends of our connection as it tells them, and as they are.
pub(crate) async fn ends(to: SocketAddr) -> Outcome<[[SocketAddr; 2]; 2]> {
    let request = format!("GET / HTTP/1.0\r\nX-Filler: {}\r\n\r\n", "x".repeat(5000));
    let (answer, own) = client::ask(to, request.as_bytes()).await?;
    let answer = answer.rsplit("\r\n").next().unwrap_or_default();
    let parts: Vec<_> = answer.split(' ').collect();
    let &[client, client_port, server, server_port] = &parts[..] else {
        return Err(format!("four words: {answer:?}").into());
    };
    let end = |address: &str, port: &str| -> Outcome<SocketAddr> {
        Ok(SocketAddr::new(address.parse::<IpAddr>()?, port.parse()?))
    };
    Ok([[end(client, client_port)?, end(server, server_port)?], [own, to]])
}
