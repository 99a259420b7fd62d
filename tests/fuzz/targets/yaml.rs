//! Any text as a policy: it is parsed, checked and translated as by `weftctl validate`, within bounds of time
//! and memory that libFuzzer checks (`-timeout`, `-rss_limit_mb`).
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use weft_policy::{Document, check};
use weft_world::translate;
use weft_world::{Scope, World, parse_policies};

fuzz_target!(|text: &str| {
    let parsed = parse_policies("f.yaml", text);
    // YAML's line breaks.
    let lines = text.matches(['\n', '\r']).count() + 1;
    for problem in &parsed.problems {
        // A missing end is reported on the line after the last.
        assert!((1..=lines + 1).contains(&(problem.place.line as usize)), "{problem} of {lines} lines");
        assert!(!problem.text.is_empty());
    }
    check(&parsed.documents.iter().collect::<Vec<&Document>>());
    let mut world = World::new("cluster.local", 1);
    world.set_policies(parsed.documents.into_iter().map(Arc::new).collect(), 0);
    translate::warnings(&world, false);
    let client = Scope::of("default");
    for host in world.hosts().take(16) {
        // Sidecars accept each accepted policy.
        let refused = translate::service(&world, &client, &host.name).map(|s| weft_core::compile::service(&s));
        if let Some(Err(refused)) = refused {
            panic!("sidecars refuse {}: {refused}", host.name);
        }
    }
});
