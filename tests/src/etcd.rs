//! A cluster of real etcd servers in a pod.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::pod::{Pod, Process};
use crate::wait_for;

/// A cluster; its members end with it.
pub struct Etcd<'a> {
    pod: &'a Pod,
    size: u16,
    data: PathBuf,
    args: Vec<String>,
    members: Vec<Option<Process>>,
}

impl<'a> Etcd<'a> {
    /// Starts so many members on ports 2379, 2389 ... of the pod's address.
    ///
    /// # Errors
    /// When they do not serve within twenty seconds.
    pub fn start(pod: &'a Pod, size: u16) -> Result<Etcd<'a>> {
        Etcd::start_with(pod, size, &[])
    }

    /// The same, with further arguments.
    ///
    /// # Errors
    /// When they do not serve within twenty seconds.
    pub fn start_with(pod: &'a Pod, size: u16, args: &[&str]) -> Result<Etcd<'a>> {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut etcd = Etcd { pod, size, data: pod.folder("etcd"), args, members: Vec::new() };
        for number in 0..size {
            let member = etcd.spawn(number)?;
            etcd.members.push(Some(member));
        }
        for number in 0..size {
            etcd.wait(number)?;
        }
        Ok(etcd)
    }

    fn spawn(&self, number: u16) -> Result<Process> {
        let own = |base: u16| format!("http://{}:{}", self.pod.ip, base + 10 * number);
        let peer = |n: u16| format!("e{n}=http://{}:{}", self.pod.ip, 2380 + 10 * n);
        let cluster = (0..self.size).map(peer).collect::<Vec<_>>().join(",");
        let (name, data) = (format!("e{number}"), self.data.join(number.to_string()).to_string_lossy().into_owned());
        let (client, peers) = (own(2379), own(2380));
        let args = [
            "--name",
            &name,
            "--data-dir",
            &data,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peers,
            "--initial-advertise-peer-urls",
            &peers,
            "--initial-cluster",
            &cluster,
            "--log-level",
            "warn",
        ];
        let more: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.pod.spawn(&name, "etcd", &[&args[..], &more].concat())
    }

    fn wait(&self, number: u16) -> Result<()> {
        wait_for("etcd", Duration::from_secs(20), || {
            let status = self.query(number, "maintenance/status", "{}")?;
            let leader = status["leader"].as_str().unwrap_or("0");
            ensure!(leader != "0", "no leader yet");
            Ok(())
        })
    }

    /// The address of member `number`, `host:port`.
    pub fn address(&self, number: u16) -> String {
        format!("{}:{}", self.pod.ip, 2379 + 10 * number)
    }

    /// The whole cluster as a store.
    pub fn store(&self) -> String {
        let all: Vec<String> = (0..self.size).map(|number| self.address(number)).collect();
        format!("etcd://{}", all.join(","))
    }

    /// Queries a member by etcd's HTTP API.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn query(&self, number: u16, path: &str, body: &str) -> Result<Value> {
        let url = format!("http://{}/v3/{path}", self.address(number));
        let text = self.pod.curl(&["-f", "--max-time", "3", "-d", body, &url])?;
        serde_json::from_str(&text).context(text)
    }

    /// The number of the leader, by a running member.
    ///
    /// # Errors
    /// When there is none.
    pub fn leader(&self) -> Result<u16> {
        for number in 0..self.size {
            if self.members[usize::from(number)].is_none() {
                continue;
            }
            let status = self.query(number, "maintenance/status", "{}")?;
            if status["leader"] == status["header"]["member_id"] {
                return Ok(number);
            }
        }
        anyhow::bail!("no member leads")
    }

    /// Ends a member at once.
    ///
    /// # Errors
    /// When it is not up.
    pub fn kill(&mut self, number: u16) -> Result<()> {
        let member = self.members[usize::from(number)].take().context("it is not up")?;
        member.signal("KILL")?;
        drop(member);
        Ok(())
    }

    /// Starts a member on the data that it left.
    ///
    /// # Errors
    /// When it does not serve within twenty seconds.
    pub fn restart(&mut self, number: u16) -> Result<()> {
        let member = self.spawn(number)?;
        self.members[usize::from(number)] = Some(member);
        self.wait(number)
    }
}
