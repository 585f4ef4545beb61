//! What goes wrong in a run, and when: a case is one line of text, so that a failure can be run again.
//!
//! ```text
//! STORY/SEED/REPLICAS/FAULT@PLACE,FAULT@PLACE…
//! flow.rollout/7/2/crash@w12,lag:4000@1+250
//! ```
//!
//! A place is `wN`, the operator's Nth request to write, or `S+MS`, so many milliseconds after step S of the story
//! began (step 0 is the start of the operator).

pub mod draw;
pub mod network;
pub mod strike;

use std::fmt;
use std::str::FromStr;

/// What goes wrong with one request that can change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnWrite {
    /// It is done, and the process dies before it learns so.
    Crash,
    /// It is done, and the connection breaks before the answer.
    Lost,
    /// It is not done, and this code is answered.
    Refuse(u16),
    /// It is done, and the answer never comes.
    Hang,
    /// It is on its way for so many milliseconds, and done then, whoever still waits for it.
    Late(u64),
}

/// How the API server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// This code to every request.
    Code(u16),
    /// No connection.
    Refused,
    /// No answer.
    Silent,
}

/// What is wrong with an object that has nothing to do with the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Badness {
    /// Its spec is what no version of the schema allows.
    Undecodable,
    /// Each write of its children is refused.
    Refused,
    /// Each write of its children is never answered.
    Hanging,
}

/// What happens at a moment. Times are milliseconds; choices count through what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sudden {
    /// The leading process dies.
    Kill,
    /// The leading process dies, and lists that need not be the newest show its successor the state of so long ago.
    Stale(u64),
    /// Watches show nothing for so long.
    Lag(u64),
    /// All watches end.
    Drop,
    /// All watches show their latest events again.
    Repeat,
    /// The history of changes is forgotten, and all watches end.
    Compact,
    /// The API server is away for so long.
    Outage(Outage, u64),
    /// The gateway does not answer for so long.
    Gateway(u64),
    /// The leading process reaches nothing for so long, and lives.
    CutOff(u64),
    /// The wall clock of the operator is wrong by so many seconds for so long.
    Clock(i64, u64),
    /// A kind of ours is not installed for so long from the start.
    Absent(u8, u64),
    /// Somebody changes a child.
    Edit(u8),
    /// Somebody deletes a child.
    Delete(u8),
    /// A person deletes an object of ours and applies it again at once.
    Recreate(u8),
    /// Something that a person made is deleted, and applied again so long after.
    Vanish(u8, u64),
    /// A person changes a ConfigMap or Secret, and back so long after.
    Waver(u8, u64),
    /// A bad object appears.
    Neighbour(Badness),
}

/// A fault and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// At a request of the operator.
    Write(usize, OnWrite),
    /// At a moment: the step and the milliseconds since it began.
    Moment(usize, u64, Sudden),
}

impl Sudden {
    /// Whether the end may differ from that of a run without it in what tells of the way: who wrote a field, how often
    /// something was made, which older revisions there were.
    pub fn leaves_traces(self) -> bool {
        match self {
            Self::Kill | Self::Stale(_) | Self::Lag(_) | Self::Drop | Self::Repeat | Self::Compact => false,
            Self::CutOff(_) | Self::Outage(..) | Self::Gateway(_) | Self::Absent(..) => true,
            Self::Clock(..) | Self::Edit(_) | Self::Delete(_) | Self::Recreate(_) => true,
            Self::Vanish(..) | Self::Waver(..) | Self::Neighbour(_) => true,
        }
    }
}

impl Fault {
    /// See [`Sudden::leaves_traces`].
    pub fn leaves_traces(self) -> bool {
        match self {
            Self::Write(_, OnWrite::Late(_)) => true,
            Self::Write(..) => false,
            Self::Moment(_, _, what) => what.leaves_traces(),
        }
    }
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Name of the story.
    pub story: String,
    /// Everything random comes from it.
    pub seed: u64,
    /// Processes of the operator.
    pub replicas: u8,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(Fault::to_string).collect();
        write!(f, "{}/{}/{}/{}", self.story, self.seed, self.replicas, faults.join(","))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(at, what) => write!(f, "{what}@w{at}"),
            Self::Moment(step, ms, what) => write!(f, "{what}@{step}+{ms}"),
        }
    }
}

impl fmt::Display for OnWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash => write!(f, "crash"),
            Self::Lost => write!(f, "lost"),
            Self::Refuse(code) => write!(f, "refuse:{code}"),
            Self::Hang => write!(f, "hang"),
            Self::Late(ms) => write!(f, "late:{ms}"),
        }
    }
}

impl fmt::Display for Sudden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => write!(f, "kill"),
            Self::Stale(ms) => write!(f, "stale:{ms}"),
            Self::Lag(ms) => write!(f, "lag:{ms}"),
            Self::Drop => write!(f, "drop"),
            Self::Repeat => write!(f, "repeat"),
            Self::Compact => write!(f, "compact"),
            Self::Outage(Outage::Code(code), ms) => write!(f, "answer:{code}:{ms}"),
            Self::Outage(Outage::Refused, ms) => write!(f, "away:{ms}"),
            Self::Outage(Outage::Silent, ms) => write!(f, "silent:{ms}"),
            Self::Gateway(ms) => write!(f, "gateway:{ms}"),
            Self::CutOff(ms) => write!(f, "cut:{ms}"),
            Self::Clock(seconds, ms) => write!(f, "clock:{seconds}:{ms}"),
            Self::Absent(pick, ms) => write!(f, "absent:{pick}:{ms}"),
            Self::Edit(pick) => write!(f, "edit:{pick}"),
            Self::Delete(pick) => write!(f, "delete:{pick}"),
            Self::Recreate(pick) => write!(f, "recreate:{pick}"),
            Self::Vanish(pick, ms) => write!(f, "vanish:{pick}:{ms}"),
            Self::Waver(pick, ms) => write!(f, "waver:{pick}:{ms}"),
            Self::Neighbour(Badness::Undecodable) => write!(f, "neighbour:0"),
            Self::Neighbour(Badness::Refused) => write!(f, "neighbour:1"),
            Self::Neighbour(Badness::Hanging) => write!(f, "neighbour:2"),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.trim().splitn(4, '/').collect();
        let [story, seed, replicas, faults] = parts[..] else {
            return Err(format!("{text:?} is not STORY/SEED/REPLICAS/FAULTS"));
        };
        let faults = faults.split(',').filter(|fault| !fault.is_empty()).map(Fault::from_str);
        Ok(Self {
            story: story.to_owned(),
            seed: number(seed)?,
            replicas: number(replicas)?,
            faults: faults.collect::<Result<_, _>>()?,
        })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("{text:?} is not a fault at a place, such as crash@w3 or lag:4000@1+250");
        let (what, place) = text.split_once('@').ok_or_else(unknown)?;
        let (name, arguments) = what.split_once(':').unwrap_or((what, ""));
        let arguments: Vec<&str> = arguments.split(':').filter(|one| !one.is_empty()).collect();
        if let Some(at) = place.strip_prefix('w') {
            let what = match (name, &arguments[..]) {
                ("crash", []) => OnWrite::Crash,
                ("lost", []) => OnWrite::Lost,
                ("refuse", [code]) => OnWrite::Refuse(number(code)?),
                ("hang", []) => OnWrite::Hang,
                ("late", [ms]) => OnWrite::Late(number(ms)?),
                _ => return Err(unknown()),
            };
            return Ok(Self::Write(number(at)?, what));
        }
        let (step, ms) = place.split_once('+').ok_or_else(unknown)?;
        let what = match (name, &arguments[..]) {
            ("kill", []) => Sudden::Kill,
            ("stale", [ms]) => Sudden::Stale(number(ms)?),
            ("lag", [ms]) => Sudden::Lag(number(ms)?),
            ("drop", []) => Sudden::Drop,
            ("repeat", []) => Sudden::Repeat,
            ("compact", []) => Sudden::Compact,
            ("answer", [code, ms]) => Sudden::Outage(Outage::Code(number(code)?), number(ms)?),
            ("away", [ms]) => Sudden::Outage(Outage::Refused, number(ms)?),
            ("silent", [ms]) => Sudden::Outage(Outage::Silent, number(ms)?),
            ("gateway", [ms]) => Sudden::Gateway(number(ms)?),
            ("cut", [ms]) => Sudden::CutOff(number(ms)?),
            ("clock", [seconds, ms]) => Sudden::Clock(number(seconds)?, number(ms)?),
            ("absent", [pick, ms]) => Sudden::Absent(number(pick)?, number(ms)?),
            ("edit", [pick]) => Sudden::Edit(number(pick)?),
            ("delete", [pick]) => Sudden::Delete(number(pick)?),
            ("recreate", [pick]) => Sudden::Recreate(number(pick)?),
            ("vanish", [pick, ms]) => Sudden::Vanish(number(pick)?, number(ms)?),
            ("waver", [pick, ms]) => Sudden::Waver(number(pick)?, number(ms)?),
            ("neighbour", ["0"]) => Sudden::Neighbour(Badness::Undecodable),
            ("neighbour", ["1"]) => Sudden::Neighbour(Badness::Refused),
            ("neighbour", ["2"]) => Sudden::Neighbour(Badness::Hanging),
            _ => return Err(unknown()),
        };
        Ok(Self::Moment(number(step)?, number(ms)?, what))
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}
