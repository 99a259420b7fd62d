//! Script checks: programs of the application that report its health.
//!
//! Off unless the operator turns them on (`--enable-script-checks`): otherwise anyone allowed to register could run arbitrary
//! commands as the proxy's user. A program has none of the sidecar's capabilities, and a time limit, after which it and all
//! its children are killed.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use weft_agent::checks::ScriptResult;

use crate::host::children;
use crate::net::sockets;

/// Bytes of a program's output that are kept; the rest is read and dropped.
const OUTPUT: usize = 4096;

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started, or takes longer than `timeout`.
pub async fn run(args: &[String], timeout: Duration) -> io::Result<ScriptResult> {
    let (program, arguments) = args.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in sockets::VARIABLES {
        command.env_remove(variable);
    }
    let start = || children::without_ambient_capabilities(|| command.spawn());
    let (mut child, _ours) = children::spawn(start, |child| child.id())?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let work = async { tokio::join!(child.wait(), read_output(out), read_output(err)) };
    let Ok((status, out, err)) = tokio::time::timeout(timeout, work).await else {
        if let Some(group) = group {
            // It may have ended in this moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait().await;
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("Timed out ({timeout:?}) running command")));
    };
    let output = String::from_utf8_lossy(&[out, err].concat()).into_owned();
    Ok(ScriptResult { code: status?.code(), output })
}

async fn read_output(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut from) = from else { return Vec::new() };
    let (mut kept, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        let room = OUTPUT.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&piece[..room]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn a_script_check_reports_exit_code_and_output() {
        let limit = Duration::from_secs(10);
        let ran = run(&sh("echo out; echo err >&2; exit 3"), limit).await.unwrap();
        assert_eq!((ran.code, ran.output.as_str()), (Some(3), "out\nerr\n"));
        let ran = run(&sh("yes | head -c 1000000"), limit).await.unwrap();
        assert_eq!((ran.code, ran.output.len()), (Some(0), OUTPUT));
        assert_eq!(run(&sh("kill -9 $$"), limit).await.unwrap().code, None);
        assert!(run(&["/no/such/program".into()], limit).await.is_err() && run(&[], limit).await.is_err());
        // A background process of the script holds its output open, and is killed with it.
        let start = std::time::Instant::now();
        let late = run(&sh("sleep 60 & sleep 60"), Duration::from_millis(200)).await.unwrap_err();
        assert!(late.kind() == io::ErrorKind::TimedOut && start.elapsed() < limit, "{late}");
    }
}
