//! Which files a configuration is made of, and whether they have changed since.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use weft_core::policy::{Credential, Origination};

/// PEM files of an origination.
pub(super) struct Files {
    /// CAs; `None`: the system's.
    pub(super) ca: Option<PathBuf>,
    /// The client certificate and its key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    /// Certificate revocation lists.
    pub(super) crl: Option<PathBuf>,
    /// Where there may be one, and is none.
    absent: Option<PathBuf>,
}

/// Files, and when they were last changed; `None`: they are not there.
pub(super) type Changes = Vec<(PathBuf, Option<SystemTime>)>;

impl Files {
    /// Those that the policy names, or those of its credential within `credentials`.
    pub(super) fn of(origination: &Origination, credentials: &Path) -> Files {
        let Some(Credential { name, shown }) = &origination.credential else {
            let path = |text: &str| PathBuf::from(text);
            return Files {
                ca: origination.ca.as_deref().map(path),
                client: origination.client.as_ref().map(|(certificate, key)| (path(certificate), path(key))),
                crl: origination.crl.as_deref().map(path),
                absent: None,
            };
        };
        let folder = credentials.join(&**name);
        // Named as in Kubernetes' secrets, from which Istio takes the revocation list where there is one.
        let crl = folder.join("ca.crl");
        let (crl, absent) = if crl.exists() { (Some(crl), None) } else { (None, Some(crl)) };
        Files {
            ca: Some(folder.join("ca.crt")),
            client: shown.then(|| (folder.join("tls.crt"), folder.join("tls.key"))),
            crl,
            absent,
        }
    }

    /// How they are now.
    pub(super) fn changes(&self) -> Changes {
        let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        let client = self.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        let all = self.ca.iter().chain(client).chain(&self.crl);
        // It may exist by now: a configuration made without it differs from one made with it.
        let absent = self.absent.iter().map(|path| (path.clone(), None));
        all.map(|path| (path.clone(), changed(path))).chain(absent).collect()
    }
}
