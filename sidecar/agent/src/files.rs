//! Files that are readable by their owner only and replaced as a whole.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Replaces the content of `path` by `bytes`, with mode 0600. A reader sees the old content or the new, never a part.
///
/// # Errors
/// If the folder is not writable.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("new");
    // A file left by a crash may have another mode.
    let _ = std::fs::remove_file(&temporary);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).with_context(context)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(context)?;
    std::fs::rename(&temporary, path).with_context(context)
}
