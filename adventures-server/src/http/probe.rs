//! The service's own client, for containers that have no other.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);

/// Returns an error where the service at `host` and `port` is not ready.
pub fn probe(host: IpAddr, port: u16) -> Result<()> {
    let host = match host {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    let address = SocketAddr::from((host, port));
    let what = || format!("no answer from {address}");
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(what)?;
    stream.set_read_timeout(Some(PATIENCE)).with_context(what)?;
    let request = format!("GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(what)?;
    let mut reply = Vec::new();
    stream.take(64).read_to_end(&mut reply).with_context(what)?;
    ensure!(reply.starts_with(b"HTTP/1.1 200 "), "{address} is not ready");
    Ok(())
}
