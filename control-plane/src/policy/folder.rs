//! A directory of policy files, read again whenever it changes.
//!
//! The newest text of every file that is without errors, alone and together with the others, is applied. A file with an
//! error keeps its last good documents: a slip of the editor must not take a policy away. Files are watched (inotify),
//! and looked at every second in case events get lost, as on network file systems. A file is read once it has rested for
//! [`SETTLE`], so that one half written is not taken for a whole one.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, SystemTime},
};

use notify::{EventKind, RecursiveMode, Watcher, event::AccessKind};
use tokio::sync::watch;

use super::{Code, Document, Place, Problem, Severity, check, parse};

/// How long a file must have been left alone.
const SETTLE: Duration = Duration::from_millis(50);
/// How often it is looked at without an event.
const POLL: Duration = Duration::from_secs(1);
/// Deepest directory; also ends circles of symbolic links.
const MAX_DEPTH: usize = 16;

/// What a folder says at one time.
#[derive(Clone, Debug, Default)]
pub struct FolderState {
    /// Documents to apply, by file and then in the order written.
    pub documents: Vec<Arc<Document>>,
    /// Errors of versions that are not applied, and warnings.
    pub problems: Vec<Problem>,
}

/// The files of a directory.
#[derive(Debug)]
pub struct PolicyFolder {
    directory: PathBuf,
    trust_domain: String,
    files: BTreeMap<PathBuf, PolicyFile>,
    problems: Vec<Problem>,
}

/// One file: what is applied of it, and a newer version while that cannot be.
#[derive(Debug, Default)]
struct PolicyFile {
    stamp: Option<Stamp>,
    applied: Vec<Arc<Document>>,
    pending: Option<Vec<Arc<Document>>>,
    problems: Vec<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

/// Files ending in `.yaml`, `.yml` or `.json` in `directory` and below, without hidden ones.
pub fn policy_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    list(directory, 0, &mut files)?;
    files.sort();
    Ok(files)
}

fn list(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        // A file that vanishes meanwhile, or a link to nowhere, is no file.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let policy =
            path.extension().is_some_and(|extension| matches!(extension.to_str(), Some("yaml" | "yml" | "json")));
        if hidden {
            continue;
        } else if metadata.is_dir() && depth < MAX_DEPTH {
            list(&path, depth + 1, files)?;
        } else if metadata.is_file() && policy {
            files.push(path);
        }
    }
    Ok(())
}

impl PolicyFolder {
    /// An unread folder, of a mesh with this trust domain.
    pub fn new(directory: impl Into<PathBuf>, trust_domain: &str) -> Self {
        let trust_domain = trust_domain.to_owned();
        Self { directory: directory.into(), trust_domain, files: BTreeMap::new(), problems: Vec::new() }
    }

    /// Reads the folder and goes on watching it from a thread of its own, which ends when all receivers are gone.
    pub fn start(directory: impl Into<PathBuf>, trust_domain: &str) -> io::Result<watch::Receiver<Arc<FolderState>>> {
        let mut folder = Self::new(directory, trust_domain);
        fs::read_dir(&folder.directory)?;
        let (events, wake) = mpsc::channel();
        let watcher = folder.watcher(events);
        folder.scan(SystemTime::now(), Duration::ZERO);
        let (sender, receiver) = watch::channel(Arc::new(folder.state()));
        std::thread::Builder::new().name("policy-folder".to_owned()).spawn(move || {
            // Kept: a dropped watcher sends nothing.
            let _watcher = watcher;
            let mut wait = POLL;
            while !sender.is_closed() {
                match wake.recv_timeout(wait) {
                    Ok(()) => {
                        std::thread::sleep(SETTLE);
                        while wake.try_recv().is_ok() {}
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    // Without a watcher there are no senders: the poll alone remains.
                    Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
                }
                let scan = folder.scan(SystemTime::now(), SETTLE);
                if scan.changed {
                    sender.send_replace(Arc::new(folder.state()));
                }
                wait = if scan.unsettled { SETTLE } else { POLL };
            }
        })?;
        Ok(receiver)
    }

    fn watcher(&self, events: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let on_event = move |event: notify::Result<notify::Event>| {
            // Our own reading makes events too.
            let read = event.is_ok_and(|event| {
                matches!(event.kind, EventKind::Access(kind) if !matches!(kind, AccessKind::Close(notify::event::AccessMode::Write)))
            });
            if !read {
                let _ = events.send(());
            }
        };
        let watch = notify::recommended_watcher(on_event).and_then(|mut watcher| {
            watcher.watch(&self.directory, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        watch
            .inspect_err(|error| {
                tracing::warn!(directory = %self.directory.display(), %error, "no events for the policy folder: polling it");
            })
            .ok()
    }

    /// Reads what changed and has rested for `settle` at `now`.
    pub fn scan(&mut self, now: SystemTime, settle: Duration) -> Scan {
        let mut scan = Scan::default();
        let found = match policy_files(&self.directory) {
            Ok(found) => found,
            Err(error) => {
                // A folder that cannot be read says nothing: it does not say that its policies are gone.
                let name = self.directory.display().to_string();
                let problems = vec![unreadable(&name, &error)];
                scan.changed = self.problems != problems;
                self.problems = problems;
                return scan;
            }
        };
        let before = self.files.len();
        self.files.retain(|path, _| found.contains(path));
        scan.changed = self.files.len() != before;
        for path in found {
            let Some(stamp) = Stamp::of(&path) else { continue };
            let file = self.files.entry(path.clone()).or_default();
            if file.stamp == Some(stamp) {
                continue;
            }
            // A time in the future is another clock's: it says nothing.
            if now.duration_since(stamp.modified).is_ok_and(|age| age < settle) {
                scan.unsettled = true;
                continue;
            }
            file.stamp = Some(stamp);
            file.read(&path, &self.trust_domain);
            scan.changed = true;
        }
        if scan.changed {
            self.apply();
        }
        scan
    }

    /// What is applied, and what is wrong.
    pub fn state(&self) -> FolderState {
        FolderState {
            documents: self.files.values().flat_map(|file| file.applied.iter().cloned()).collect(),
            problems: self.files.values().flat_map(|file| &file.problems).chain(&self.problems).cloned().collect(),
        }
    }

    /// Applies the pending versions that are right together with all others. Where they are not, those with an error stay
    /// pending; where a pending one broke a file that did not change, all pending ones do.
    fn apply(&mut self) {
        let mut held: Vec<PathBuf> = Vec::new();
        let mut refused: Vec<Problem> = Vec::new();
        loop {
            let candidates: Vec<(&PathBuf, &Arc<Document>)> = self
                .files
                .iter()
                .flat_map(|(path, file)| {
                    let pending = file.pending.as_ref().filter(|_| !held.contains(path));
                    pending.unwrap_or(&file.applied).iter().map(move |document| (path, document))
                })
                .collect();
            let documents: Vec<&Document> = candidates.iter().map(|(_, document)| &***document).collect();
            let problems = check(&documents);
            let wrong = |path: &Path| {
                let file = path.display().to_string();
                problems.iter().any(|problem| problem.severity == Severity::Error && problem.file == file)
            };
            let open = self.files.iter().filter(|(path, file)| file.pending.is_some() && !held.contains(path));
            let open: Vec<PathBuf> = open.map(|(path, _)| path.clone()).collect();
            let mut faulty: Vec<PathBuf> = open.iter().filter(|path| wrong(path)).cloned().collect();
            if faulty.is_empty() && problems.iter().any(|problem| problem.severity == Severity::Error) {
                faulty = open;
            }
            if faulty.is_empty() {
                refused.extend(problems);
                break;
            }
            refused.extend(problems.into_iter().filter(|problem| problem.severity == Severity::Error));
            held.extend(faulty);
        }
        for (path, file) in &mut self.files {
            if !held.contains(path)
                && let Some(pending) = file.pending.take()
            {
                file.applied = pending;
            }
        }
        refused.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
        refused.dedup();
        self.problems = refused;
    }
}

/// What a scan saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The state differs from the one before.
    pub changed: bool,
    /// A file is being written: look again soon.
    pub unsettled: bool,
}

impl PolicyFile {
    fn read(&mut self, path: &Path, trust_domain: &str) {
        let name = path.display().to_string();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.problems = vec![unreadable(&name, &error)];
                return;
            }
        };
        let parsed = parse(&name, &text).of_mesh(trust_domain);
        let good = !parsed.has_errors();
        self.problems = parsed.problems;
        // A version with errors also withdraws an older one that was still pending.
        self.pending = good.then(|| parsed.documents.into_iter().map(Arc::new).collect());
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok()?, length: metadata.len(), inode: metadata.ino() })
    }
}

fn unreadable(file: &str, error: &io::Error) -> Problem {
    let place = Place { line: 1, column: 1 };
    let text = format!("cannot be read: {error}");
    Problem {
        file: file.to_owned(),
        place,
        severity: Severity::Error,
        code: Code::Unreadable,
        path: String::new(),
        text,
    }
}

#[cfg(test)]
mod tests;
