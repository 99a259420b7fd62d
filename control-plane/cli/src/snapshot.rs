//! `weftctl snapshot save` and `restore`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use futures::stream;
use weft_proto::v1::{SaveSnapshotRequest, SnapshotPiece};

use super::remote::{Remote, refused};
use weft_files::snapshot::{self, PIECE};

/// Saves and restores the control plane's data
#[derive(Debug, clap::Subcommand)]
pub enum Snapshot {
    /// Writes a file with registrations, policies, key-value pairs and the certificate authority; it contains keys, and
    /// only its owner can read it
    Save {
        /// File to write; an existing file is not overwritten
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// Replaces the control plane's data with those of a file
    Restore {
        /// File to read
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Snapshot {
    /// Runs it.
    ///
    /// # Errors
    /// If the file cannot be read or written, is not a snapshot, or the control plane is unreachable.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        match self {
            Snapshot::Save { file, remote } => {
                let mut pieces =
                    remote.connect().await?.save_snapshot(SaveSnapshotRequest {}).await.map_err(refused)?.into_inner();
                let mut bytes = Vec::new();
                while let Some(piece) = pieces.message().await.map_err(refused)? {
                    bytes.extend(piece.bytes);
                }
                let records = snapshot::decode(&bytes).map_err(anyhow::Error::msg)?.len();
                let context = || format!("cannot write {}", file.display());
                let to = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
                let mut to = to.with_context(context)?;
                to.write_all(&bytes).and_then(|()| to.sync_all()).with_context(context)?;
                writeln!(out, "{records} records in {}; the file contains the mesh's keys", file.display())?;
            }
            Snapshot::Restore { file, remote } => {
                let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                // Checked here, before anything is sent.
                snapshot::decode(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
                let pieces: Vec<SnapshotPiece> =
                    bytes.chunks(PIECE).map(|piece| SnapshotPiece { bytes: piece.to_vec() }).collect();
                let restored = remote.connect().await?.restore_snapshot(stream::iter(pieces)).await;
                let restored = restored.map_err(refused)?.into_inner();
                writeln!(out, "{} records restored", restored.records)?;
                if restored.restart {
                    writeln!(out, "the certificate authority has changed: restart the control planes")?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
