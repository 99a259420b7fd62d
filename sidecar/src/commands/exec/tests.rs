use std::cell::Cell;
use std::future::{pending, ready};

use clap::Parser;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::*;

fn child(script: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", script])
        .process_group(0)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn line(child: &mut Child) -> tokio::process::ChildStdout {
    let mut out = child.stdout.take().unwrap();
    out.read_u8().await.unwrap();
    out
}

#[tokio::test]
async fn exec_returns_the_commands_exit_code() {
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let (_sender, mut signals) = mpsc::channel(1);
        let drained = Cell::new(false);
        let code = supervise(child(script), &mut signals, pending(), || async { drained.set(true) }).await.unwrap();
        assert_eq!((code, drained.get()), (expected, true), "{script}");
    }
}

#[tokio::test]
async fn the_pod_is_drained_before_the_command_is_signalled() {
    let mut child = child("trap 'echo stopped; exit 5' TERM; echo; while :; do sleep 0.05; done");
    let mut out = line(&mut child).await;
    let (sender, mut signals) = mpsc::channel(1);
    let registered = Cell::new(false);
    let register = async {
        registered.set(true);
        sender.send(Signal::TERM).await.unwrap();
    };
    let said = async {
        // Still running after a while of draining.
        let mut text = String::new();
        let early = tokio::time::timeout(Duration::from_millis(300), out.read_to_string(&mut text)).await;
        assert!(early.is_err() && text.is_empty(), "{text}");
    };
    let code = supervise(child, &mut signals, register, || said).await.unwrap();
    assert_eq!((code, registered.get()), (5, true));
}

#[tokio::test]
async fn a_second_signal_cuts_the_drain_short() {
    let mut child = child("trap 'exit 6' TERM; echo; while :; do sleep 0.05; done");
    let _out = line(&mut child).await;
    let (sender, mut signals) = mpsc::channel(2);
    sender.send(Signal::TERM).await.unwrap();
    sender.send(Signal::INT).await.unwrap();
    let ended = supervise(child, &mut signals, pending(), pending::<()>);
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap().unwrap(), 6);
}

#[tokio::test]
async fn other_signals_are_passed_to_the_command() {
    // Not HUP or INT: a shell cannot trap signals that were ignored when it began, as they are under nohup and in the background.
    let mut child = child("trap 'exit 9' USR1; echo; while :; do sleep 0.05; done");
    let _out = line(&mut child).await;
    let (sender, mut signals) = mpsc::channel(1);
    sender.send(Signal::USR1).await.unwrap();
    assert_eq!(supervise(child, &mut signals, ready(()), || ready(())).await.unwrap(), 9);
}

#[tokio::test]
async fn registration_waits_for_the_applications_listener() {
    connect::probe_marks();
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = reserved.local_addr().unwrap().port();
    drop(reserved);
    assert!(tokio::time::timeout(Duration::from_millis(250), accepts(port)).await.is_err());
    let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    tokio::time::timeout(Duration::from_secs(5), accepts(port)).await.unwrap();
}

#[tokio::test]
async fn a_missing_command_is_reported() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let missing = child::spawn(&["/no/such/program"], limit).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    options: Options,
}

#[test]
fn exec_takes_options_of_run_and_redirect() {
    let line = "x --control-plane a:1 --service order --port 8080 --redirect --uid 7 --no-dns -- app --port 9 -x";
    let options = Args::try_parse_from(line.split(' ')).unwrap().options;
    assert_eq!(options.command, ["app", "--port", "9", "-x"]);
    assert!(options.redirect && options.capture.is_given());
    assert_eq!(options.config.port, Some(8080));
    let plain = Args::try_parse_from("x --control-plane a:1 -- app".split(' ')).unwrap().options;
    assert!(!plain.redirect && !plain.capture.is_given());
    assert!(Args::try_parse_from("x --control-plane a:1".split(' ')).is_err(), "no command");
}
