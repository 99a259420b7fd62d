//! The packets between two pods, captured at the bridge.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::{Mesh, Pod, Process, wait_for};

/// A running tcpdump.
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
}

/// The content of a capture.
pub(crate) struct Seen {
    /// All payload bytes.
    pub(crate) bytes: Vec<u8>,
    /// Segments with payload.
    pub(crate) segments: usize,
    /// Those among them that begin as a TLS record does.
    pub(crate) tls: usize,
    /// The first bytes of the first.
    pub(crate) first: Vec<u8>,
}

impl Capture {
    /// Starts tcpdump for the traffic between two pods; none when no tcpdump runs.
    pub(crate) fn start(mesh: &Mesh, a: &Pod, b: &Pod) -> Result<Option<Capture>> {
        if weft_tests::run("sh", &["-c", "command -v tcpdump"]).is_err() {
            return Ok(None);
        }
        let file = PathBuf::from("/run/demo.pcap");
        let (name, filter) = (file.to_string_lossy(), format!("tcp and host {} and host {}", a.ip, b.ip));
        let args = ["-i", "br0", "--immediate-mode", "-U", "-s0", "-Z", "root", "-w", &*name, &filter];
        let process = mesh.center.spawn("tcpdump", "tcpdump", &args)?;
        let listens = wait_for("tcpdump", Duration::from_secs(2), || {
            ensure!(process.output().contains("listening on"), "{}", process.output().trim());
            Ok(())
        });
        // Some builds of tcpdump fail in a user namespace, because they cannot change to their user.
        if let Err(e) = listens {
            println!("  tcpdump does not run here: {}", e.root_cause());
            return Ok(None);
        }
        Ok(Some(Capture { process, file }))
    }

    /// Ends it, and reads its capture.
    pub(crate) fn end(mut self) -> Result<Seen> {
        // Packets reach the file a moment after the wire.
        std::thread::sleep(Duration::from_millis(300));
        self.process.signal("INT")?;
        self.process.wait(Duration::from_secs(5))?;
        read(&self.file)
    }
}

/// Reads a capture file of Ethernet frames with TCP over IPv4.
fn read(file: &Path) -> Result<Seen> {
    let pcap = std::fs::read(file)?;
    let mut seen = Seen { bytes: Vec::new(), segments: 0, tls: 0, first: Vec::new() };
    let mut rest = pcap.get(24..).unwrap_or_default();
    while let Some((header, more)) = rest.split_at_checked(16) {
        let length = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((frame, more)) = more.split_at_checked(length) else { break };
        rest = more;
        let Some(payload) = payload(frame).filter(|p| !p.is_empty()) else { continue };
        seen.segments += 1;
        // Change cipher spec, alert, handshake, data; then version 3.x.
        let is_tls = payload.len() >= 5 && (0x14..=0x17).contains(&payload[0]) && payload[1] == 3 && payload[2] <= 4;
        seen.tls += usize::from(is_tls);
        if seen.first.is_empty() {
            seen.first = payload.iter().take(12).copied().collect();
        }
        seen.bytes.extend_from_slice(payload);
    }
    Ok(seen)
}

fn payload(frame: &[u8]) -> Option<&[u8]> {
    let ip = frame.get(14..)?;
    let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    let ip_header = usize::from(ip.first()? & 0x0f) * 4;
    let tcp = ip.get(ip_header..total)?;
    tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)
}
