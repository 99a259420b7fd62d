//! Scenarios with a real API server and controller manager: one cluster for all of them, in the namespace of a mesh whose
//! control plane follows it.

mod chart;
mod cluster;
mod gateway_api;
mod identity;
mod source;
mod webhooks;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use cluster::Cluster;

type Scenario = fn(&Cluster) -> anyhow::Result<()>;

fn main() -> ExitCode {
    if let Err(e) =
        weft_tests::install(&["kubernetes"]).and_then(|()| cluster::build()).and_then(|()| weft_tests::enter())
    {
        eprintln!("scenarios with Kubernetes cannot run here: {e:#}");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // They share a cluster, and one of them takes its API server away.
    arguments.test_threads = Some(1);
    let scenarios: Vec<(&str, Scenario)> =
        [source::all(), gateway_api::all(), identity::all(), chart::all(), webhooks::all()].concat();
    if arguments.list {
        let trials = scenarios.into_iter().map(|(name, _)| Trial::test(name, || Ok(())));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let cluster = match Cluster::start() {
        Ok(cluster) => Arc::new(cluster),
        Err(e) => {
            eprintln!("the cluster does not start: {e:#}\n{}", weft_tests::take_logs());
            return ExitCode::FAILURE;
        }
    };
    let trials = scenarios.into_iter().map(|(name, scenario)| {
        let cluster = cluster.clone();
        Trial::test(name, move || {
            scenario(&cluster).map_err(|e| {
                let objects = cluster.kubectl(&["get", "pods,services,endpointslices", "-A", "-o", "wide"], "");
                Failed::from(format!("{e:#}\n{}\n{}", objects.unwrap_or_default(), cluster.mesh.status()))
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if conclusion.has_failed() {
        drop(cluster);
        eprintln!("{}", weft_tests::take_logs());
    }
    conclusion.exit_code()
}
