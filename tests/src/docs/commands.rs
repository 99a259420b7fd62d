//! `docs/commands.md`: the options of the three programs, read from their `--help`.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binary;

/// The page, below the repository.
pub const PAGE: &str = "docs/commands.md";
const PROGRAMS: [&str; 3] = ["weftctl", "weft-sidecar", "weft-control-plane"];
/// Options of each command.
const EVERYWHERE: [&str; 2] = ["-h, --help", "-V, --version"];
const HEADER: &str = "\
# Commands and options

<!-- Written by `make commands`. Do not edit. -->

For operators: all commands and options, as `--help` prints them (`-h` and `-V` left out). An option with a variable can be given by that
variable of the environment instead. `WEFT_LOG` sets the level of the log, see [metrics.md](metrics.md#log).
";

/// The text of the page, from the programs as they are built.
///
/// # Errors
/// When a program is not built, or its help cannot be read.
pub fn text() -> Result<String> {
    let mut text = HEADER.to_owned();
    for program in PROGRAMS {
        section(&[program], &mut text)?;
    }
    Ok(text)
}

/// Appends a command's section, and those of its subcommands.
fn section(command: &[&str], text: &mut String) -> Result<()> {
    let help = Help::parse(&printed(command)?);
    let level = if command.len() == 1 { "##" } else { "###" };
    write!(text, "\n{level} {}\n\n{}\n\n```\n{}\n```\n", command.join(" "), help.about, help.usage)?;
    for (heading, entries) in &help.sections {
        let entries: Vec<_> = entries.iter().filter(|(name, _)| !EVERYWHERE.contains(&name.as_str())).collect();
        if heading == "Commands" || entries.is_empty() {
            continue;
        }
        write!(text, "\n{heading}:\n\n")?;
        for (name, description) in entries {
            writeln!(text, "- `{name}`: {description}")?;
        }
    }
    for (name, _) in
        help.sections.iter().filter(|(heading, _)| heading == "Commands").flat_map(|(_, commands)| commands)
    {
        if name != "help" {
            section(&[command, &[name]].concat(), text)?;
        }
    }
    Ok(())
}

fn printed(command: &[&str]) -> Result<String> {
    let (program, arguments) = command.split_first().context("no program")?;
    // Without the environment, whose values the help would show.
    let output = Command::new(binary(program)?).args(arguments).arg("--help").env_clear().output()?;
    ensure!(output.status.success(), "{} --help: {}", command.join(" "), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The output of `--help`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Help {
    about: String,
    usage: String,
    /// Heading, and below it names with descriptions.
    sections: Vec<(String, Vec<(String, String)>)>,
}

impl Help {
    /// Reads the layouts of clap: a name and its description in one line, or the description below it; both wrapped.
    fn parse(text: &str) -> Help {
        let mut help = Help::default();
        for line in text.lines() {
            let indent = line.len() - line.trim_start().len();
            let words = line.trim();
            if let Some(usage) = line.strip_prefix("Usage: ") {
                usage.clone_into(&mut help.usage);
            } else if let Some(heading) = line.strip_suffix(':').filter(|_| indent == 0) {
                help.sections.push((heading.to_owned(), Vec::new()));
            } else if let Some((_, entries)) = help.sections.last_mut() {
                add(entries, indent, words);
            } else if help.usage.is_empty() {
                let separator = if words.is_empty() { "\n\n" } else { " " };
                if help.about.is_empty() || help.about.ends_with('\n') || words.is_empty() {
                    help.about.push_str(if words.is_empty() { separator } else { words });
                } else {
                    let _ = write!(help.about, " {words}");
                }
            }
        }
        help.about = help.about.trim().to_owned();
        help.sections.retain(|(_, entries)| !entries.is_empty());
        help
    }
}

/// Adds a line of a section.
fn add(entries: &mut Vec<(String, String)>, indent: usize, words: &str) {
    // Descriptions stand further to the right than the longest of short names.
    if (1..=6).contains(&indent) {
        let (name, description) = words.split_once("  ").unwrap_or((words, ""));
        entries.push((name.to_owned(), code(description.trim())));
    } else if let Some((_, description)) = entries.last_mut()
        && !words.is_empty()
    {
        let separator = if description.is_empty() { "" } else { " " };
        let _ = write!(description, "{separator}{}", code(words));
    }
}

/// Text as Markdown: angle brackets are escaped, and values of variables are removed.
fn code(text: &str) -> String {
    text.replace('<', "&lt;").replace("=]", "]")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_of_commands_is_up_to_date() {
        let page = std::fs::read_to_string(crate::docs::root().join(PAGE)).unwrap();
        assert!(page == text().unwrap(), "{PAGE} is out of date: run `cargo build` and `make commands`");
    }

    #[test]
    fn each_command_has_a_man_page() {
        let folder = tempfile::tempdir().unwrap();
        for (program, option) in [("weftctl", "man"), ("weft-sidecar", "man"), ("weft-control-plane", "--man")] {
            let status = Command::new(binary(program).unwrap()).arg(option).arg(folder.path()).status().unwrap();
            assert!(status.success(), "{program}: {status}; is it out of date? Run `cargo build`");
        }
        let files = std::fs::read_dir(folder.path()).unwrap();
        let pages: BTreeSet<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let text = text().unwrap();
        let commands = text.lines().filter_map(|line| line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")));
        assert_eq!(pages, commands.map(|command| format!("{}.1", command.replace(' ', "-"))).collect());
        let page = std::fs::read_to_string(folder.path().join("weft-sidecar-run.1")).unwrap();
        assert!(page.starts_with(".ie") && page.contains("\\-\\-control\\-plane"), "{page}");
    }

    #[test]
    fn both_layouts_of_help_are_read() {
        let short = "Does it\n\nUsage: a [OPTIONS] <F>\n\nArguments:\n  <F>  A file\n\nOptions:\n      --long-name <X>  First,\n                       \
                     and more\n  -h, --help  Print help\n";
        let help = Help::parse(short);
        let entry = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!((help.about.as_str(), help.usage.as_str()), ("Does it", "a [OPTIONS] <F>"));
        assert_eq!(help.sections[0], ("Arguments".into(), vec![entry("<F>", "A file")]));
        let options = vec![entry("--long-name <X>", "First, and more"), entry("-h, --help", "Print help")];
        assert_eq!(help.sections[1], ("Options".into(), options));

        let long = "Does it\nwell\n\nAnd more.\n\nUsage: a\n\nOptions:\n      --x <X>\n          First,\n          more\n          \n          \
                    [default: 1]\n\n  -V, --version\n          Print version\n";
        let help = Help::parse(long);
        assert_eq!(help.about, "Does it well\n\nAnd more.");
        let options = vec![entry("--x <X>", "First, more [default: 1]"), entry("-V, --version", "Print version")];
        assert_eq!(help.sections, [("Options".into(), options)]);
    }
}
