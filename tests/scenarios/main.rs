//! Scenarios: each starts a mesh of real processes in network namespaces and looks at it from outside.

/// Scenarios by the names of their functions.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), $name as fn() -> anyhow::Result<()>)),*]
    };
}

mod abuse;
mod agent;
mod certificates;
mod clients;
mod commands;
mod connections;
mod costs;
mod datacenters;
mod defaults;
mod disks;
mod dns;
mod documents;
mod ending;
mod eureka;
mod exec;
mod explained;
mod external;
mod fields;
mod gateway;
mod gateway_api;
mod gateway_tls;
mod groups;
mod headless;
mod hosts;
mod image;
mod life;
mod limits;
mod locality;
mod machine;
mod operations;
mod outside;
mod probes;
mod protocols;
mod proxies;
mod redirection;
mod registry;
mod reload;
mod routes;
mod sidecars;
mod silence;
mod store;
mod streams;
mod times;
mod traffic;
mod trouble;
mod unix;
mod vanished;
mod wire;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    if let Err(e) = weft_tests::install(&[]).and_then(|()| weft_tests::enter()) {
        eprintln!("scenarios cannot run here: {e:#}");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // Each scenario starts several processes: one at a time, so that measured times are comparable.
    arguments.test_threads = Some(1);
    let trials = [
        traffic::all(),
        protocols::all(),
        probes::all(),
        proxies::all(),
        life::all(),
        limits::all(),
        locality::all(),
        agent::all(),
        clients::all(),
        commands::all(),
        connections::all(),
        dns::all(),
        documents::all(),
        ending::all(),
        vanished::all(),
        redirection::all(),
        reload::all(),
        eureka::all(),
        external::all(),
        trouble::all(),
        wire::all(),
        streams::all(),
        abuse::all(),
        costs::all(),
        fields::all(),
        gateway::all(),
        gateway_api::all(),
        gateway_tls::all(),
        groups::all(),
        headless::all(),
        outside::all(),
        hosts::all(),
        image::all(),
        datacenters::all(),
        routes::all(),
        explained::all(),
        registry::all(),
        sidecars::all(),
        silence::all(),
        defaults::all(),
        store::all(),
        disks::all(),
        times::all(),
        unix::all(),
        operations::all(),
        exec::all(),
        machine::all(),
    ]
    .concat();
    // Threads begin before the first of the others, and are joined after the last.
    let waiting: Vec<Trial> =
        times::waiting().into_iter().chain(streams::waiting()).map(|waiting| begun(&arguments, waiting)).collect();
    let trials = trials.into_iter().map(|(name, scenario)| Trial::test(name, move || run(scenario)));
    libtest_mimic::run(&arguments, trials.chain(waiting).collect()).exit_code()
}

/// A scenario that mostly waits: it runs beside all others, and is joined at their end.
fn begun(arguments: &Arguments, (name, scenario): Scenario) -> Trial {
    let fits = |filter: &String| if arguments.exact { name == filter } else { name.contains(filter.as_str()) };
    let wanted = !arguments.list
        && !arguments.ignored
        && arguments.filter.as_ref().is_none_or(fits)
        && !arguments.skip.iter().any(fits);
    let thread = wanted.then(|| std::thread::spawn(move || run(scenario)));
    Trial::test(name, move || match thread {
        Some(thread) => thread.join().unwrap_or_else(|_| Err("it panicked".into())),
        None => run(scenario),
    })
}

/// A failure includes the ends of the logs, because it may not be reproducible.
fn run(scenario: fn() -> anyhow::Result<()>) -> Result<(), Failed> {
    let result = scenario();
    let logs = weft_tests::take_logs();
    result.map_err(|e| Failed::from(format!("{e:#}\n{logs}")))
}

/// A scenario with its name.
type Scenario = (&'static str, fn() -> anyhow::Result<()>);
