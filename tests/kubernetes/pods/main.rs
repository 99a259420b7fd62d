//! Scenarios with a whole Kubernetes node: Weft is installed by its chart, and sidecars are injected into real pods.

mod node;
mod rollout;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use node::Node;

type Scenario = fn(&Node) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share the node.
    arguments.test_threads = Some(1);
    let scenarios: Vec<(&str, Scenario)> = rollout::all();
    if arguments.list {
        let trials = scenarios.into_iter().map(|(name, _)| Trial::test(name, || Ok(())));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let before = node::traces();
    let node = match weft_tests::install(&["kubernetes"]).and_then(|()| Node::start()) {
        Ok(node) => Arc::new(node),
        Err(e) => {
            eprintln!("scenarios with a Kubernetes node cannot run here: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = scenarios.into_iter().map(|(name, scenario)| {
        let node = node.clone();
        Trial::test(name, move || scenario(&node).map_err(|e| Failed::from(format!("{e:#}\n{}", node.report()))))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(node);
    let after = node::traces();
    if after != before {
        eprintln!("the node has left traces on the machine: {before:?} before, {after:?} after");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
