//! The files of a policy folder, with stamps that differ when a file has changed. No file is read.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

/// Deepest directory; also ends loops of symbolic links.
const MAX_DEPTH: usize = 16;

/// The properties that differ between two versions of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stamp {
    /// Time of the last modification.
    pub modified: SystemTime,
    length: u64,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Option<Self> {
        Some(Self { modified: metadata.modified().ok()?, length: metadata.len(), inode: metadata.ino() })
    }
}

/// Files ending in `.yaml`, `.yml` or `.json` in `directory` and below, without hidden ones, sorted.
///
/// # Errors
/// If a directory cannot be read.
pub fn policy_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(stamped(directory)?.into_iter().map(|(path, _)| path.into()).collect())
}

/// The same with their stamps, sorted by the bytes of their paths: the order of `Path` compares components, which would
/// be the largest cost here.
pub fn stamped(directory: &Path) -> io::Result<Vec<(OsString, Stamp)>> {
    let mut files = Vec::new();
    list(directory, 0, &mut files)?;
    files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(files)
}

fn list(directory: &Path, depth: usize, files: &mut Vec<(OsString, Stamp)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().first() == Some(&b'.');
        let policy = matches!(Path::new(&name).extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"));
        if hidden || (kind.is_file() && !policy) {
            continue;
        }
        let path = entry.path();
        // A file that vanishes meanwhile, or a broken link, is skipped.
        let metadata = if kind.is_symlink() { fs::metadata(&path) } else { entry.metadata() };
        let Ok(metadata) = metadata else { continue };
        if metadata.is_dir() && depth < MAX_DEPTH {
            list(&path, depth + 1, files)?;
        } else if metadata.is_file()
            && policy
            && let Some(stamp) = Stamp::of(&metadata)
        {
            files.push((path.into(), stamp));
        }
    }
    Ok(())
}
