//! A directory of policy files, read again whenever it changes.
//!
//! The newest text of every file that is without errors, alone and together with the others, is applied. A file with an
//! error keeps its last good documents: a typing error must not remove a policy. Nor must a file that is empty or
//! missing for a moment ([`grace`]). Files are watched (inotify), and their metadata read periodically in case events
//! get lost, as on network file systems. A file is read once it has not changed for [`SETTLE`], so that a partly
//! written file is not used.

mod grace;

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use notify::{EventKind, RecursiveMode, Watcher, event::AccessKind};
use tokio::sync::watch;

use grace::{Cause, GraceList};

use super::PolicySource;
use weft_files::policies::{Stamp, stamped};
use weft_policy::{Code, Document, Key, Place, Problem, Severity, check, impact};
use weft_world::parse_policies;

/// How long a file must be unchanged.
const SETTLE: Duration = Duration::from_millis(50);
/// Minimum time between two scans without an event.
const POLL: Duration = Duration::from_secs(1);
/// Maximum time between them.
const MAX_POLL: Duration = Duration::from_secs(30);
/// The pause as a multiple of the duration of a scan: scans cost half a percent of a core, whatever the number of
/// files.
const PAUSE: u32 = 200;
/// Seconds that the documents of an emptied or removed file are kept by default.
pub const DEFAULT_GRACE_S: u64 = 10;

/// The rest of the mesh, which a folder does not contain.
pub trait Surroundings: Send {
    /// Documents of other sources: the API.
    fn documents(&self) -> Vec<Arc<Document>>;
    /// Whether the registry has instances of a host (canonical name).
    fn offers(&self, host: &str) -> bool;
}

/// An empty mesh.
impl Surroundings for () {
    fn documents(&self) -> Vec<Arc<Document>> {
        Vec::new()
    }

    fn offers(&self, _: &str) -> bool {
        false
    }
}

/// A moment by both clocks: files use the wall clock, which can be set, and waits the steady one.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Wall clock.
    pub wall: SystemTime,
    /// Steady.
    pub steady: Instant,
}

impl Now {
    /// The current moment.
    pub fn get() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }
}

/// The content of a folder at one time.
#[derive(Clone, Debug, Default)]
pub struct FolderState {
    /// Documents to apply, by file and then in the order of the file.
    pub documents: Vec<Arc<Document>>,
    /// Documents that no file has any more and that still apply, unless another source has the object.
    pub withdrawn: Vec<Arc<Document>>,
    /// Errors of versions that are not applied, and warnings.
    pub problems: Vec<Problem>,
}

impl PolicySource for FolderState {
    fn list(&self) -> Box<dyn Iterator<Item = &Arc<Document>> + '_> {
        Box::new(self.documents.iter())
    }

    fn withdrawn(&self) -> &[Arc<Document>] {
        &self.withdrawn
    }

    fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// The files of a directory.
pub struct PolicyFolder {
    directory: PathBuf,
    trust_domain: String,
    /// By path.
    files: BTreeMap<OsString, PolicyFile>,
    grace: GraceList,
    surroundings: Box<dyn Surroundings>,
    /// Problems between documents.
    problems: Vec<Problem>,
    /// Whether `problems` are all problems between the applied documents, because no version was refused.
    clean: bool,
    /// The reason why the last scan could not read the folder.
    unreadable: Option<Problem>,
}

/// One file: the applied version, and a newer one that cannot be applied yet.
#[derive(Debug, Default)]
struct PolicyFile {
    stamp: Option<Stamp>,
    applied: Vec<Arc<Document>>,
    pending: Option<Vec<Arc<Document>>>,
    problems: Vec<Problem>,
}

impl PolicyFolder {
    /// An unread folder of a mesh with this trust domain. Documents of an emptied or removed file are kept for `grace`,
    /// and as long as another document needs them.
    pub fn new(
        directory: impl Into<PathBuf>,
        trust_domain: &str,
        grace: Duration,
        surroundings: impl Surroundings + 'static,
    ) -> Self {
        Self {
            directory: directory.into(),
            trust_domain: trust_domain.to_owned(),
            files: BTreeMap::new(),
            grace: GraceList::new(grace),
            surroundings: Box::new(surroundings),
            problems: Vec::new(),
            clean: false,
            unreadable: None,
        }
    }

    /// Reads the folder and watches it from a thread of its own, which ends when all receivers are gone.
    ///
    /// # Errors
    /// If the folder cannot be read, or the thread cannot be started.
    pub fn start(mut self) -> io::Result<watch::Receiver<Arc<FolderState>>> {
        fs::read_dir(&self.directory)?;
        let (events, wake) = mpsc::channel();
        let watcher = self.watcher(events);
        self.scan(Now::get(), Duration::ZERO);
        let (sender, receiver) = watch::channel(Arc::new(self.state()));
        std::thread::Builder::new().name("policy-folder".to_owned()).spawn(move || {
            // A dropped watcher sends nothing.
            let _watcher = watcher;
            let mut wait = POLL;
            while !sender.is_closed() {
                match wake.recv_timeout(wait) {
                    Ok(()) => {
                        std::thread::sleep(SETTLE);
                        while wake.try_recv().is_ok() {}
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    // Without a watcher there are no senders: only the poll remains.
                    Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
                }
                let now = Now::get();
                let scan = self.scan(now, SETTLE);
                if scan.changed {
                    sender.send_replace(Arc::new(self.state()));
                }
                wait = self.pause(scan, now.steady);
            }
        })?;
        Ok(receiver)
    }

    /// The pause after a scan that began at `began`.
    fn pause(&self, scan: Scan, began: Instant) -> Duration {
        if let Some(rest) = scan.unsettled {
            return rest;
        }
        let pause = began.elapsed().saturating_mul(PAUSE).clamp(POLL, MAX_POLL);
        let due = self.grace.due().map(|due| due.saturating_duration_since(Instant::now()).max(SETTLE));
        due.map_or(pause, |due| due.min(pause))
    }

    fn watcher(&self, events: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let on_event = move |event: notify::Result<notify::Event>| {
            // The scan's own reads cause events too.
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

    /// Reads the files that changed and have been unchanged for `settle` at `now`.
    pub fn scan(&mut self, now: Now, settle: Duration) -> Scan {
        let mut scan = Scan::default();
        let stamped_files = match stamped(&self.directory) {
            Ok(stamped_files) => stamped_files,
            Err(error) => {
                // If a folder cannot be read, its policies are unknown, not removed.
                let name = self.directory.display().to_string();
                let problem = Some(unreadable(&name, &error));
                scan.changed = self.unreadable != problem;
                self.unreadable = problem;
                return scan;
            }
        };
        scan.changed = self.unreadable.take().is_some();
        let mut known = 0;
        let before = self.files.len();
        for (path, stamp) in &stamped_files {
            let file = match self.files.get_mut(path) {
                Some(file) => {
                    known += 1;
                    file
                }
                None => self.files.entry(path.clone()).or_default(),
            };
            if file.stamp == Some(*stamp) {
                continue;
            }
            // A time in the future is another clock's and cannot be compared.
            let age = now.wall.duration_since(stamp.modified).unwrap_or(settle);
            if age < settle {
                scan.unsettled = scan.unsettled.max(Some(settle - age));
                continue;
            }
            file.stamp = Some(*stamp);
            if !file.read(Path::new(path), &self.trust_domain) && file.applied.is_empty() {
                // It was emptied or missing before it returned with an error: its last good documents stay.
                file.applied = self.grace.take(&Path::new(path).display().to_string());
            }
            scan.changed = true;
        }
        if known < before {
            scan.changed = true;
            self.remove_all_but(&stamped_files, now.steady);
        }
        if scan.changed {
            self.apply(now.steady);
        }
        if scan.changed || self.grace.due().is_some_and(|due| due <= now.steady) {
            scan.changed |= self.settle_kept(now.steady);
        }
        scan
    }

    /// Removes the files that are not in `stamped_files`, which is sorted; their documents are kept for a while.
    fn remove_all_but(&mut self, stamped_files: &[(OsString, Stamp)], now: Instant) {
        let is_there = |path: &OsStr| stamped_files.binary_search_by(|(other, _)| other.as_os_str().cmp(path)).is_ok();
        let (files, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.files).into_iter().partition(|(path, _)| is_there(path));
        self.files = files;
        for document in gone.into_values().flat_map(|file| file.applied) {
            self.grace.withdraw(document, Cause::Removed, now);
        }
    }

    /// Drops kept documents that a source has again, and those whose time is over. Returns whether anything changed.
    fn settle_kept(&mut self, now: Instant) -> bool {
        if self.grace.is_empty() {
            return false;
        }
        let mut present: Vec<Arc<Document>> = self.files.values().flat_map(|file| file.newest()).cloned().collect();
        present.extend(self.surroundings.documents());
        let keys: HashSet<Key> = present.iter().map(|document| document.key()).collect();
        let returned = self.grace.return_to(|key| keys.contains(key));
        let (withdrawn, changed) = self.grace.expire(now, &present, &|host| self.surroundings.offers(host));
        for name in &withdrawn {
            tracing::info!(document = name, "withdrawn: its file was emptied or removed");
        }
        let changed = changed || !withdrawn.is_empty();
        if changed {
            // Versions that were refused because of them may be valid now, and the other way round.
            self.apply(now);
        }
        returned || changed
    }

    /// The applied documents, and the problems.
    pub fn state(&self) -> FolderState {
        let of_files = self.files.values().flat_map(|file| &file.problems);
        FolderState {
            documents: self.files.values().flat_map(|file| file.applied.iter().cloned()).collect(),
            withdrawn: self.grace.documents().cloned().collect(),
            problems: of_files
                .chain(&self.problems)
                .chain(&self.unreadable)
                .cloned()
                .chain(self.grace.problems())
                .collect(),
        }
    }

    /// Applies the pending versions that are valid together with all others. If some are not, those with an error stay
    /// pending; if a pending one breaks an unchanged file, all pending ones stay.
    fn apply(&mut self, now: Instant) {
        let refused_files = match self.check_affected() {
            Some(problems) => {
                self.problems = problems;
                HashSet::new()
            }
            None => self.check_all(),
        };
        self.clean =
            refused_files.is_empty() && !self.problems.iter().any(|problem| problem.severity == Severity::Error);
        for (path, file) in &mut self.files {
            if !refused_files.contains(path)
                && let Some(pending) = file.pending.take()
            {
                let cause = if pending.is_empty() { Cause::Emptied } else { Cause::LeftOut };
                for document in std::mem::replace(&mut file.applied, pending) {
                    if !file.applied.iter().any(|new| new.is_same_object(&document)) {
                        self.grace.withdraw(document, cause, now);
                    }
                }
            }
        }
    }

    /// The problems between all documents once the pending versions apply, from a check of the documents that they can
    /// affect. `None`: errors require a check of everything, to decide on the refused versions.
    fn check_affected(&self) -> Option<Vec<Problem>> {
        let open: Vec<&PolicyFile> = self.files.values().filter(|file| file.pending.is_some()).collect();
        let emptied = |file: &&PolicyFile| file.newest().is_empty() && !file.applied.is_empty();
        if !self.clean || !self.grace.is_empty() || open.iter().any(emptied) {
            return None;
        }
        let changed = open.iter().flat_map(|file| file.applied.iter().chain(file.newest()));
        let changed: Vec<&Document> = changed.map(AsRef::as_ref).collect();
        let all = self.candidates(&HashSet::new());
        let impact = impact(&changed, &all);
        let found = check(&impact.documents);
        if found.iter().any(|problem| problem.severity == Severity::Error) {
            return None;
        }
        let is_of = |problem: &&Problem| impact.files.contains(problem.file.as_str());
        let mut problems: Vec<Problem> = self.problems.iter().filter(|problem| !is_of(problem)).cloned().collect();
        problems.extend(found.iter().filter(is_of).cloned());
        weft_policy::sort_problems(&mut problems);
        Some(problems)
    }

    /// Checks everything. Returns the files whose pending versions do not apply.
    fn check_all(&mut self) -> HashSet<OsString> {
        let mut refused_files: HashSet<OsString> = HashSet::new();
        let mut refused: Vec<Problem> = Vec::new();
        loop {
            let problems = check(&self.candidates(&refused_files));
            let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
            let wrong: HashSet<&str> = errors.map(|problem| problem.file.as_str()).collect();
            let open =
                self.files.iter().filter(|(path, file)| file.pending.is_some() && !refused_files.contains(*path));
            let open: Vec<OsString> = open.map(|(path, _)| path.clone()).collect();
            let is_wrong = |path: &&OsString| wrong.contains(&*Path::new(path).display().to_string());
            let mut faulty: Vec<OsString> = open.iter().filter(is_wrong).cloned().collect();
            if faulty.is_empty() {
                faulty = open;
            }
            if wrong.is_empty() || faulty.is_empty() {
                refused.extend(problems);
                break;
            }
            refused.extend(problems.into_iter().filter(|problem| problem.severity == Severity::Error));
            refused_files.extend(faulty);
        }
        weft_policy::sort_problems(&mut refused);
        self.problems = refused;
        refused_files
    }

    /// The documents without the pending versions of `refused_files`, and with those that are kept for a while.
    fn candidates(&self, refused_files: &HashSet<OsString>) -> Vec<&Document> {
        let is_open = |path: &OsString, file: &PolicyFile| file.pending.is_some() && !refused_files.contains(path);
        let of_file = |(path, file)| if is_open(path, file) { file.newest() } else { &file.applied[..] };
        let mut documents: Vec<&Document> = self.files.iter().flat_map(of_file).map(AsRef::as_ref).collect();
        let emptied = self.files.iter().filter(|(path, file)| is_open(path, file) && file.newest().is_empty());
        let emptied = emptied.flat_map(|(_, file)| &file.applied);
        let mut kept = self.grace.documents().chain(emptied).peekable();
        if kept.peek().is_some() {
            let keys: HashSet<Key> = documents.iter().map(|document| document.key()).collect();
            documents.extend(kept.map(AsRef::as_ref).filter(|document| !keys.contains(&document.key())));
        }
        documents
    }
}

/// The result of a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Whether the state differs from the previous one.
    pub changed: bool,
    /// The time until the next scan, because files are being written.
    pub unsettled: Option<Duration>,
}

impl PolicyFile {
    /// The version that applies once it is valid together with all others.
    fn newest(&self) -> &[Arc<Document>] {
        self.pending.as_ref().unwrap_or(&self.applied)
    }

    /// Reads it again. Returns whether it is valid.
    fn read(&mut self, path: &Path, trust_domain: &str) -> bool {
        let name = path.display().to_string();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.problems = vec![unreadable(&name, &error)];
                return false;
            }
        };
        let parsed = parse_policies(&name, &text).of_mesh(trust_domain);
        let good = !parsed.has_errors();
        self.problems = parsed.problems;
        // A version with errors also withdraws an older one that is still pending.
        self.pending = good.then(|| parsed.documents.into_iter().map(Arc::new).collect());
        good
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
