//! The processes of the cluster under test, read from the process table: what runs in which pod, and how it is killed.
//!
//! Only descendants of this cluster's own supervisor are looked at: other clusters of the machine are none of ours.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Controller,
    Gateway,
    Engine,
    IndexServer,
    IndexBuild,
    Evaluation,
    ApiServer,
    Etcd,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Controller,
        Self::Gateway,
        Self::Engine,
        Self::IndexServer,
        Self::IndexBuild,
        Self::Evaluation,
        Self::ApiServer,
        Self::Etcd,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Gateway => "gateway",
            Self::Engine => "engine",
            Self::IndexServer => "index server",
            Self::IndexBuild => "index-build Job",
            Self::Evaluation => "Evaluation Job",
            Self::ApiServer => "API server",
            Self::Etcd => "etcd",
        }
    }

    fn of(arguments: &[String]) -> Option<Self> {
        let word = |place: usize| arguments.get(place).map_or("", String::as_str);
        if arguments.iter().any(|argument| argument.ends_with("llama_server.py")) {
            return Some(Self::Engine);
        }
        if word(0) == "devcluster" && word(1) == "component" {
            return match word(3) {
                "kube-apiserver" => Some(Self::ApiServer),
                "etcd" => Some(Self::Etcd),
                _ => None,
            };
        }
        if !word(0).ends_with("llmops") {
            return None;
        }
        match (word(1), word(2)) {
            ("controller", _) => Some(Self::Controller),
            ("gateway", _) => Some(Self::Gateway),
            ("index", "serve") => Some(Self::IndexServer),
            ("index", "build") => Some(Self::IndexBuild),
            ("evaluate", _) => Some(Self::Evaluation),
            _ => None,
        }
    }
}

/// A running process. `started` makes it the same process, whoever has its number later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub started: u64,
    pub kind: Kind,
    /// Name of its pod; empty for components.
    pub pod: String,
}

struct Entry {
    parent: i32,
    started: u64,
    state: char,
    threads: usize,
}

impl Entry {
    /// A process whose first thread has ended is a zombie, but holds its sockets until the last thread has.
    fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X') || self.threads > 1
    }
}

fn entry(pid: i32) -> Option<Entry> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Entry {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        threads: fields.get(17)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn texts(pid: i32, file: &str) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

fn table() -> HashMap<i32, Entry> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, entry(pid)?))).collect()
}

/// Every process below the supervisor, itself included.
pub fn descendants(supervisor: i32) -> Vec<i32> {
    let table = table();
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, entry) in &table {
        children.entry(entry.parent).or_default().push(*pid);
    }
    let mut found = Vec::new();
    let mut next = vec![supervisor];
    while let Some(pid) = next.pop() {
        if table.contains_key(&pid) {
            found.push(pid);
        }
        next.extend(children.remove(&pid).unwrap_or_default());
    }
    found
}

/// Processes by number and start, which no later process of that number has.
pub fn identities(pids: &[i32]) -> Vec<(i32, u64)> {
    pids.iter().filter_map(|pid| Some((*pid, entry(*pid)?.started))).collect()
}

/// Those that still live, with their command lines.
pub fn alive(identities: &[(i32, u64)]) -> Vec<String> {
    let live = |pid: i32, started: u64| entry(pid).is_some_and(|entry| entry.started == started && entry.lives());
    let living = identities.iter().filter(|(pid, started)| live(*pid, *started));
    living.map(|(pid, _)| format!("{pid} {}", texts(*pid, "cmdline").join(" "))).collect()
}

/// The processes that may be killed.
pub fn victims(supervisor: i32) -> Vec<Process> {
    let found = descendants(supervisor).into_iter().filter_map(|pid| {
        let entry = entry(pid).filter(Entry::lives)?;
        let kind = Kind::of(&texts(pid, "cmdline"))?;
        let pod = match kind {
            Kind::ApiServer | Kind::Etcd => String::new(),
            // A container's host name is its pod's name.
            _ => texts(pid, "environ").iter().find_map(|pair| pair.strip_prefix("HOSTNAME=").map(str::to_owned))?,
        };
        Some(Process { pid, started: entry.started, kind, pod })
    });
    let mut found: Vec<Process> = found.collect();
    found.sort_by(|a, b| (a.kind, &a.pod, a.pid).cmp(&(b.kind, &b.pod, b.pid)));
    found
}

impl Process {
    fn lives(&self) -> bool {
        entry(self.pid).is_some_and(|entry| entry.started == self.started && entry.lives())
    }

    /// Kills the process and returns when it is dead. Blocks for some milliseconds.
    pub fn kill(&self) -> Result<()> {
        if !self.lives() {
            bail!("{} {} has ended by itself", self.kind.name(), self.pid);
        }
        let status = std::process::Command::new("kill").args(["-9", &self.pid.to_string()]).status()?;
        if !status.success() {
            bail!("kill -9 {}: {status}", self.pid);
        }
        let since = Instant::now();
        while self.lives() {
            if since.elapsed() > Duration::from_secs(10) {
                bail!("{} {} does not die", self.kind.name(), self.pid);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Established connections to an address: requests that are in flight there, since every client connects anew.
pub fn connections(address: Ipv4Addr, port: u16) -> Result<usize> {
    let wanted = format!("{:08X}:{port:04X}", u32::from_le_bytes(address.octets()));
    let text = std::fs::read_to_string("/proc/net/tcp").context("/proc/net/tcp")?;
    let established = text.lines().skip(1).filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&wanted.as_str()) && fields.get(3) == Some(&"01")
    });
    Ok(established.count())
}
