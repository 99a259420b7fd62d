//! `weftctl inject`: adds sidecars to the pods of files, without a cluster.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use weft_injection::Config;
use weft_injection::manifest::{Namespaces, add_sidecars};

use crate::{files, style};

/// Adds sidecars to the pods of files and prints the result, for a cluster without the webhook or a review of its work; exits
/// with 1 if a pod is refused
#[derive(Debug, clap::Args)]
pub struct Inject {
    /// Files, directories of *.yaml, *.yml and *.json, or - for standard input. Objects without pods pass through unchanged
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none. A Namespace among the files counts with its labels for injection; pods of others
    /// get sidecars unless they decline
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Configuration of injection, as the control plane has it (--injection-config) [default: the default one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Image with Weft's programs
    #[arg(long)]
    image: Option<String>,
    /// host:port of the control plane
    #[arg(long, value_name = "HOST:PORT")]
    control_plane: Option<String>,
    /// Revision
    #[arg(long)]
    revision: Option<String>,
    /// Native sidecars, which need Kubernetes 1.29 or later
    #[arg(long, value_name = "true|false")]
    native_sidecar: Option<bool>,
}

impl Inject {
    /// Runs the command: the objects on standard output, notes on standard error.
    ///
    /// # Errors
    /// If the configuration is invalid, or the output cannot be written.
    pub fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        self.write(out, &mut anstream::stderr().lock())
    }

    fn write(&self, out: &mut impl Write, notes: &mut impl Write) -> Result<ExitCode> {
        let config = self.config()?;
        let mut whole = Vec::new();
        let mut failed = false;
        let mut texts = Vec::new();
        for file in files::read(&self.files) {
            let text = file.text.with_context(|| format!("cannot read {}", file.name))?;
            texts.push((file.name, text));
        }
        let namespaces = Namespaces::of(&self.namespace, texts.iter().map(|(_, text)| &**text));
        for (name, text) in &texts {
            let manifest = add_sidecars(&config, &namespaces, text);
            for note in &manifest.notes {
                writeln!(notes, "{}", style::problem(&format!("{name}: warning: {note}")))?;
            }
            for error in &manifest.errors {
                writeln!(notes, "{}", style::problem(&format!("{name}: error: {error}")))?;
            }
            failed |= !manifest.errors.is_empty();
            whole.push(manifest.text);
        }
        if failed {
            writeln!(notes, "nothing was printed: correct the errors first")?;
            return Ok(ExitCode::FAILURE);
        }
        for text in &whole {
            let start = if whole.len() > 1 && !text.starts_with("---\n") { "---\n" } else { "" };
            write!(out, "{start}{text}")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn config(&self) -> Result<Config> {
        let mut config = match &self.config {
            None => Config::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Config::parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?
            }
        };
        let texts = [
            (&mut config.image, &self.image),
            (&mut config.control_plane, &self.control_plane),
            (&mut config.revision, &self.revision),
        ];
        for (setting, given) in texts {
            if let Some(given) = given {
                given.clone_into(setting);
            }
        }
        config.native_sidecar = self.native_sidecar.unwrap_or(config.native_sidecar);
        config.check().map_err(|error| anyhow!(error))?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        inject: Inject,
    }

    fn run(args: &[&str]) -> (Result<ExitCode>, String, String) {
        let command = Command::try_parse_from([&["inject"], args].concat()).unwrap();
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let code = command.inject.write(&mut out, &mut notes);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    const POD: &str = "kind: Pod\nmetadata: {name: a, annotations: {sidecar.istio.io/bootstrapOverride: x}}\n\
                       spec: {containers: [{name: app}]}\n";
    const OTHER: &str = "# as it is\nkind: Service\nmetadata: {name: b}\n";

    #[test]
    fn files_are_printed_with_sidecars() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_string_lossy().into_owned();
        std::fs::write(folder.path().join("a.yaml"), POD).unwrap();
        std::fs::write(folder.path().join("b.yml"), OTHER).unwrap();
        let (code, out, notes) =
            run(&["-f", &path, "-n", "shop", "--image", "registry/weft:1", "--native-sidecar=false"]);
        assert_eq!(code.unwrap(), ExitCode::SUCCESS);
        assert!(out.starts_with("---\n") && out.ends_with(&format!("---\n{OTHER}")), "{out}");
        assert!(out.contains("image: registry/weft:1") && !out.contains("restartPolicy: Always"), "{out}");
        assert!(
            notes.contains("a.yaml: ") && notes.contains("Pod shop/a: annotation sidecar.istio.io/bootstrapOverride"),
            "{notes}"
        );
    }

    #[test]
    fn nothing_is_printed_after_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name).to_string_lossy().into_owned()
        };
        let bad = file("bad.yaml", "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: weft-proxy}]}\n");
        let (code, out, notes) = run(&["-f", &bad]);
        assert_eq!((code.unwrap(), &*out), (ExitCode::FAILURE, ""));
        assert!(
            notes.contains("bad.yaml")
                && notes.contains("the name weft-proxy")
                && notes.contains("nothing was printed"),
            "{notes}"
        );
        let config = file("config.yaml", "imgae: a\n");
        let (code, ..) = run(&["-f", &bad, "--config", &config]);
        assert!(code.unwrap_err().to_string().contains("config.yaml: unknown field `imgae`"));
        let (code, ..) = run(&["-f", &bad, "--image", ""]);
        assert!(code.unwrap_err().to_string().contains("`image` must not be empty"));
        let (code, ..) = run(&["-f", "/none"]);
        assert!(code.unwrap_err().to_string().contains("cannot read /none"));
    }
}
