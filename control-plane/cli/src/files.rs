//! The files that a command is given: by name, by folder as the control plane reads one, or by standard input.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use weft_files::policies::policy_files;

/// A file and what came of reading it.
#[derive(Debug)]
pub(super) struct InputFile {
    pub(super) name: String,
    pub(super) text: io::Result<String>,
}

/// All that `paths` name, each file once.
pub(super) fn read(paths: &[PathBuf]) -> Vec<InputFile> {
    let mut given = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            let text = io::stdin().read_to_string(&mut text).map(|_| text);
            given.push(InputFile { name: "<stdin>".to_owned(), text });
            continue;
        }
        let files = match path.is_dir().then(|| policy_files(path)) {
            None => vec![path.clone()],
            Some(Ok(files)) => files,
            Some(Err(error)) => {
                given.push(InputFile { name: path.display().to_string(), text: Err(error) });
                continue;
            }
        };
        for file in files.into_iter().filter(|file| seen.insert(file.clone())) {
            given.push(InputFile { name: file.display().to_string(), text: std::fs::read_to_string(&file) });
        }
    }
    given
}
