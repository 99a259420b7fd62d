//! `weftctl get` and `weftctl delete`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weft_proto::v1::{self, Object, ObjectName};

use super::kinds::{self, Selector};
use super::remote::{Remote, refused};
use super::style;
use crate::files::{self, InputFile};
use weft_policy::yaml;

/// Shows policies: all, of some kinds, or by name
#[derive(Debug, clap::Args)]
pub struct Get {
    /// KIND[,KIND] [NAME]..., or KIND/NAME and KIND/NAMESPACE/NAME; kinds also by kubectl's short names (dr, vs, se,
    /// gw)
    #[arg(value_name = "KIND [NAME]")]
    objects: Vec<String>,
    /// Namespace; default: all
    #[arg(short, long, default_value = "")]
    namespace: String,
    /// All namespaces, which is the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// A table, `wide` with hosts, `name` for KIND/NAMESPACE/NAME only, `yaml` as they were applied, or `json`
    #[arg(short, long, default_value = "table", value_parser = ["table", "wide", "name", "yaml", "json"])]
    output: String,
    #[command(flatten)]
    remote: Remote,
}

impl Get {
    /// Runs it. The exit status is 1 if a named object does not exist.
    ///
    /// # Errors
    /// If the control plane is unreachable.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let selectors = kinds::selectors(&self.objects)?;
        let all = self.remote.connect().await?.get(v1::GetRequest { object: None }).await;
        let (found, missing) = pick(all.map_err(refused)?.into_inner().objects, &selectors, &self.namespace);
        show(&found, &self.output, selectors.len() == 1 && selectors[0].name.is_some(), out)?;
        for missing in &missing {
            eprintln!("weftctl: there is no {missing}");
        }
        Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The selected objects, and the named ones that do not exist.
fn pick(all: Vec<Object>, selectors: &[Selector], namespace: &str) -> (Vec<Object>, Vec<Selector>) {
    let name = |object: &Object| object.object.clone().unwrap_or_default();
    let means = |selectors: &Selector, object: &Object| selectors.means(&name(object), namespace);
    let missing = selectors.iter().filter(|one| one.name.is_some() && !all.iter().any(|object| means(one, object)));
    let missing = missing.cloned().collect();
    (all.into_iter().filter(|object| selectors.iter().any(|one| means(one, object))).collect(), missing)
}

fn show(objects: &[Object], output: &str, one: bool, out: &mut impl Write) -> Result<()> {
    match output {
        "yaml" => {
            for object in objects {
                writeln!(out, "---\n# {}\n{}", object.source, object.yaml.trim_end())?;
            }
        }
        "json" => {
            let mut items = objects.iter().map(|object| document(&object.yaml)).collect::<Result<Vec<_>>>()?;
            let value = match items.len() {
                1 if one => items.remove(0),
                _ => json!({ "apiVersion": "v1", "kind": "List", "items": items }),
            };
            writeln!(out, "{value:#}")?;
        }
        "name" => {
            for object in objects {
                let name = object.object.clone().unwrap_or_default();
                writeln!(out, "{}/{}/{}", name.kind, name.namespace, name.name)?;
            }
        }
        _ => table(objects, output == "wide", out)?,
    }
    Ok(())
}

fn table(objects: &[Object], wide: bool, out: &mut impl Write) -> Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let mut head = vec!["KIND", "NAMESPACE", "NAME", "SOURCE"];
    head.extend(wide.then_some("HOSTS"));
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for object in objects {
        let ObjectName { kind, namespace, name } = object.object.clone().unwrap_or_default();
        let mut row = vec![kind, namespace, name, object.source.clone()];
        if wide {
            row.push(hosts(&document(&object.yaml)?));
        }
        rows.push(row);
    }
    let columns = rows[0].len();
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default()).collect();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The subject of a document: its host or hosts, those of a Gateway's servers, or the labels that it selects by.
fn hosts(document: &Value) -> String {
    let spec = &document["spec"];
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let mut found: Vec<String> = spec["host"].as_str().map(str::to_owned).into_iter().collect();
    found.extend(texts(&spec["hosts"]));
    found.extend(spec["servers"].as_array().into_iter().flatten().flat_map(|server| texts(&server["hosts"])));
    if found.is_empty() {
        let labels = spec["selector"]["matchLabels"].as_object().or(spec["selector"].as_object());
        let shown = |(key, value): (&String, &Value)| Some(format!("{key}={}", value.as_str()?));
        found = labels.into_iter().flatten().filter_map(shown).collect();
    }
    if found.is_empty() { "-".to_owned() } else { found.join(",") }
}

/// A document as JSON.
fn document(text: &str) -> Result<Value> {
    let (documents, errors) = yaml::parse(text);
    ensure!(errors.is_empty(), "the control plane sent a document that is not YAML: {:?}", errors[0]);
    let first = documents.first().context("the control plane sent an empty document")?;
    Ok(first.root.to_json())
}

/// Deletes policies that were applied: by name, or those in files
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// KIND NAME..., or KIND/NAME and KIND/NAMESPACE/NAME; kinds also by kubectl's short names (dr, vs, se, gw)
    #[arg(value_name = "KIND NAME", required_unless_present = "files", conflicts_with = "files")]
    objects: Vec<String>,
    /// Files whose objects are deleted, directories of them, or - for standard input
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// An object that does not exist is not an error
    #[arg(long)]
    ignore_not_found: bool,
    /// Also if another object needs it, so that requests will fail
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    remote: Remote,
}

impl Delete {
    /// Runs it: all named objects, even if one of them fails. The exit status is 1 if one could not be deleted.
    ///
    /// # Errors
    /// If the control plane is unreachable, or a file cannot be read: then nothing is deleted.
    pub async fn run(&self, out: &mut impl Write) -> Result<ExitCode> {
        let names = if self.files.is_empty() { self.named_objects()? } else { of_files(&files::read(&self.files))? };
        let mut client = self.remote.connect().await?;
        let objects = client.get(v1::GetRequest { object: None }).await.map_err(refused)?.into_inner().objects;
        let mut failed = false;
        for (n, name) in names.iter().enumerate() {
            let reference = format!("{}/{}/{}", name.kind, name.namespace, name.name);
            if !objects.iter().any(|object| object.object.as_ref() == Some(name)) {
                failed |= !self.ignore_not_found;
                let word = if self.ignore_not_found { "not there" } else { &style::bad("not there") };
                writeln!(out, "{reference} {word}")?;
                continue;
            }
            let (object, along) = (Some(name.clone()), names[n + 1..].to_vec());
            let request = v1::DeleteRequest { object, along, force: self.force };
            let deleted = client.delete(request).await.map_err(refused);
            let after = names.len() - n - 1;
            let context = || format!("{reference} may not have been deleted, and the {after} after it were not");
            let reply = deleted.with_context(context)?.into_inner();
            for line in &reply.warnings {
                writeln!(out, "{}", style::problem(line))?;
            }
            if reply.error.is_empty() {
                writeln!(out, "{reference} deleted")?;
            } else {
                failed = true;
                writeln!(out, "{}", style::bad(&reply.error))?;
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn named_objects(&self) -> Result<Vec<ObjectName>> {
        let mut names = Vec::new();
        for selectors in kinds::selectors(&self.objects)? {
            let Selector { kinds, namespace, name: Some(name) } = selectors else {
                bail!(
                    "a kind and a name are required, or a file (-f): all objects of a kind cannot be deleted at once"
                );
            };
            ensure!(!kinds.is_empty(), "a kind is required beside the name");
            let namespace = namespace.unwrap_or_else(|| self.namespace.clone());
            names.extend(kinds.iter().map(|kind| ObjectName {
                kind: kind.name().to_owned(),
                namespace: namespace.clone(),
                name: name.clone(),
            }));
        }
        Ok(names)
    }
}

/// The objects of files, last first: an object may need those before it.
fn of_files(files: &[InputFile]) -> Result<Vec<ObjectName>> {
    let mut names = Vec::new();
    for InputFile { name, text } in files {
        let text = text.as_ref().map_err(|e| anyhow::anyhow!("{name}: cannot be read: {e}"))?;
        let parsed = weft_world::parse_policies(name, text);
        if let Some(problem) = parsed.problems.iter().find(|problem| problem.severity == weft_policy::Severity::Error) {
            bail!("{problem}\nnothing was deleted");
        }
        names.extend(parsed.documents.into_iter().map(|document| ObjectName {
            kind: document.kind().name().to_owned(),
            namespace: document.namespace,
            name: document.name,
        }));
    }
    ensure!(!names.is_empty(), "these files contain no object of the mesh");
    names.reverse();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: order}\nspec:\n  \
                        host: order\n  trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}}\n";

    fn object(kind: &str, namespace: &str, name: &str, yaml: &str) -> Object {
        let object = Some(ObjectName { kind: kind.into(), namespace: namespace.into(), name: name.into() });
        Object { object, yaml: yaml.to_owned(), source: "api".into() }
    }

    fn shown(objects: &[Object], output: &str, one: bool) -> String {
        let mut out = Vec::new();
        show(objects, output, one, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn objects_are_shown_in_each_form() {
        let gateway = "kind: Gateway\nspec: {selector: {app: gw}, servers: [{hosts: [a.example, b.example]}]}\n";
        let all = [object("DestinationRule", "default", "order", RULE), object("Gateway", "shop", "edge", gateway)];
        let table = "KIND             NAMESPACE  NAME   SOURCE\nDestinationRule  default    order  api\n\
                     Gateway          shop       edge   api\n";
        assert_eq!(shown(&all, "table", false), table);
        let wide = shown(&all, "wide", false);
        assert!(wide.contains("SOURCE  HOSTS\n") && wide.contains("api     order\n"), "{wide}");
        assert!(wide.ends_with("api     a.example,b.example\n"), "{wide}");
        assert_eq!(shown(&all, "name", false), "DestinationRule/default/order\nGateway/shop/edge\n");
        assert!(shown(&all, "yaml", false).contains("---\n# api\napiVersion: networking.istio.io/v1\n"));
        let one: Value = serde_json::from_str(&shown(&all[..1], "json", true)).unwrap();
        assert_eq!(one["spec"]["trafficPolicy"]["connectionPool"]["tcp"]["maxConnections"], 5);
        let list: Value = serde_json::from_str(&shown(&all, "json", false)).unwrap();
        assert_eq!((&list["kind"], &list["items"][1]["spec"]["selector"]["app"]), (&json!("List"), &json!("gw")));
        assert_eq!(shown(&[], "table", false), "");
        assert_eq!(serde_json::from_str::<Value>(&shown(&[], "json", false)).unwrap()["items"], json!([]));
    }

    #[test]
    fn scalars_keep_their_type() {
        let text = "a: 1\nb: \"1\"\nc: true\nd: 1.5\ne: ~\nf: text\ng: [x, 2]\nh: 'true'\n";
        let expected =
            json!({ "a": 1, "b": "1", "c": true, "d": 1.5, "e": null, "f": "text", "g": ["x", 2], "h": "true" });
        assert_eq!(document(text).unwrap(), expected);
    }

    #[test]
    fn named_objects_that_do_not_exist_are_missing() {
        let all =
            || vec![object("DestinationRule", "default", "order", RULE), object("VirtualService", "shop", "order", "")];
        let picked = |words: &[&str], namespace: &str| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let (found, missing) = pick(all(), &kinds::selectors(&words).unwrap(), namespace);
            (found.len(), missing.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(picked(&[], ""), (2, vec![]));
        assert_eq!(picked(&[], "shop"), (1, vec![]));
        assert_eq!(picked(&["gw"], ""), (0, vec![]), "of a kind there may be none");
        assert_eq!(picked(&["dr", "order", "gone"], ""), (1, vec![r#"DestinationRule "gone""#.to_owned()]));
        assert_eq!(picked(&["vs/shop/order", "dr/order"], "default"), (2, vec![]));
    }

    #[test]
    fn files_name_their_objects_last_first() {
        let files = |text: &str| vec![InputFile { name: "a.yaml".into(), text: Ok(text.to_owned()) }];
        let two = format!("{RULE}---\n{}", RULE.replace("name: order", "name: b, namespace: shop"));
        let names: Vec<String> =
            of_files(&files(&two)).unwrap().iter().map(|n| format!("{}/{}", n.namespace, n.name)).collect();
        assert_eq!(names, ["shop/b", "default/order"]);
        let error = of_files(&files(&RULE.replace("maxConnections: 5", "maxConnections: x"))).unwrap_err().to_string();
        assert!(error.contains("a.yaml:6:") && error.ends_with("nothing was deleted"), "{error}");
        assert!(of_files(&files("")).is_err());
    }
}
