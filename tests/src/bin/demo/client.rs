//! The frontend's requests, by curl.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use weft_tests::Pod;

/// Printed by curl after each answer.
const END: &str = "\n@@@\n";

/// A request to the order service.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// Path and query.
    pub(crate) path: &'a str,
    /// The `user-id` header.
    pub(crate) user: &'a str,
    /// Whether `x-canary: true` is sent.
    pub(crate) canary: bool,
}

/// A response.
pub(crate) struct Answer {
    /// 0: no response.
    pub(crate) status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split_whitespace().nth(1)).and_then(|s| s.parse().ok()).unwrap_or(0);
        let headers = lines.filter_map(|l| l.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Answer { status, headers, body: body.to_owned() }
    }

    /// A header of the answer, empty without.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The instance that answered.
    pub(crate) fn server(&self) -> &str {
        match self.header("x-served-by") {
            "" => "-",
            name => name,
        }
    }

    /// How many requests the server had seen on the connection, with this one, and the connection's number.
    pub(crate) fn connection(&self) -> (u64, u64) {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        (body["connection"].as_u64().unwrap_or(0), body["request"].as_u64().unwrap_or(0))
    }

    /// A header of the request as the application received it.
    pub(crate) fn received(&self, name: &str) -> Option<String> {
        let body: Value = serde_json::from_str(&self.body).ok()?;
        let headers = body["headers"].as_array()?;
        let pair = headers.iter().find(|h| h[0].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name)))?;
        Some(pair[1].as_str()?.to_owned())
    }
}

/// Requests under way.
pub(crate) struct Running(Child);

impl Running {
    /// Their answers, in order.
    pub(crate) fn answers(self) -> Result<Vec<Answer>> {
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut answers: Vec<Answer> = text.split(END).map(Answer::parse).collect();
        // No text follows the last end.
        answers.pop();
        if answers.is_empty() {
            anyhow::bail!("curl: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(answers)
    }
}

/// Starts one curl that makes these requests in turn.
pub(crate) fn start(pod: &Pod, requests: &[Request<'_>]) -> Result<Running> {
    let mut config = String::new();
    for request in requests {
        if !config.is_empty() {
            config.push_str("next\n");
        }
        config.push_str(&format!(
            "url = \"http://order-service:8080{}\"\nheader = \"user-id: {}\"\n",
            request.path, request.user
        ));
        if request.canary {
            config.push_str("header = \"x-canary: true\"\n");
        }
        config.push_str("silent\ninclude\nmax-time = 10\nwrite-out = \"\\n@@@\\n\"\n");
    }
    let mut command = pod.command("curl");
    let mut child =
        command.args(["-K", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // curl reads its whole configuration before it begins.
    child.stdin.take().context("no input")?.write_all(config.as_bytes())?;
    Ok(Running(child))
}

/// Makes these requests in turn.
pub(crate) fn requests(pod: &Pod, requests: &[Request<'_>]) -> Result<Vec<Answer>> {
    start(pod, requests)?.answers()
}

/// One request of a user, so many times.
pub(crate) fn repeat(pod: &Pod, request: Request<'_>, times: usize) -> Result<Vec<Answer>> {
    requests(pod, &vec![request; times])
}
