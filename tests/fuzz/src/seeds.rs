//! Seeds of the fuzzers: policies, and the messages that they are translated to.
//!
//! usage: fuzz-seeds OUT POLICIES...   OUT/yaml gets each document of the files, OUT/compile each message of each host

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use prost::Message;
use weft_policy::Document;
use weft_world::translate;
use weft_world::{Scope, World, parse_policies};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let out = arguments.next().context("usage: fuzz-seeds OUT POLICIES...")?;
    for folder in ["yaml", "compile", "matcher"] {
        fs::create_dir_all(out.join(folder))?;
    }
    let mut documents: Vec<Document> = Vec::new();
    for file in arguments {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        documents.extend(parse_policies(&file.to_string_lossy(), &text).documents);
    }
    ensure!(!documents.is_empty(), "no document in these files");
    for (n, document) in documents.iter().enumerate() {
        fs::write(out.join("yaml").join(n.to_string()), &document.yaml)?;
    }
    let mut world = World::new("cluster.local", 1);
    world.set_policies(documents.into_iter().map(Arc::new).collect(), 0);
    let client = Scope::of("default");
    let hosts: Vec<String> = world.hosts().map(|host| host.name.clone()).collect();
    for (n, host) in hosts.iter().enumerate() {
        let at = |kind: u8| out.join("compile").join(format!("{kind}-{n}"));
        if let Some(service) = translate::service(&world, &client, host) {
            message(&at(0), 0, &service)?;
        }
        if let Some(host) = world.host(host) {
            message(&at(1), 1, &translate::endpoints(&world, host))?;
        }
    }
    message(&out.join("compile/2"), 2, &translate::inbound(&world, "default", &Default::default(), &[]))
}

fn message(file: &Path, kind: u8, message: &impl Message) -> Result<()> {
    Ok(fs::write(file, [vec![kind], message.encode_to_vec()].concat())?)
}
