//! The input files of a command: by name, by folder as the control plane reads one, or by standard input.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use weft_files::policies::policy_files;

/// A file and its text, or the error.
#[derive(Debug)]
pub(super) struct InputFile {
    pub(super) name: String,
    pub(super) text: io::Result<String>,
}

/// The files that `paths` name, each once.
pub(super) fn read(paths: &[PathBuf]) -> Vec<InputFile> {
    let mut inputs = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            let text = io::stdin().read_to_string(&mut text).map(|_| text);
            inputs.push(InputFile { name: "<stdin>".to_owned(), text });
            continue;
        }
        let files = match path.is_dir().then(|| policy_files(path)) {
            None => vec![path.clone()],
            Some(Ok(files)) => files,
            Some(Err(error)) => {
                inputs.push(InputFile { name: path.display().to_string(), text: Err(error) });
                continue;
            }
        };
        for file in files.into_iter().filter(|file| seen.insert(file.clone())) {
            inputs.push(InputFile { name: file.display().to_string(), text: std::fs::read_to_string(&file) });
        }
    }
    inputs
}
