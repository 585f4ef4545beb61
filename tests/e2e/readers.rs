//! Readers: users who ask a flow and say whether they liked the answer, as long as a test goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use llmops::experiment::assignment::bucket;
use serde_json::json;

use crate::gateway::Gateway;

/// Questions that carry their own answer, and the word without which an answer is wrong.
pub const FACTS: [(&str, &str); 8] = [
    ("The zorblax flower is mauve. What colour is the zorblax flower?", "mauve"),
    ("The river Quell is 912 km long. How long is the river Quell?", "912"),
    ("Mayor Tilda lives in Brunford. Where does mayor Tilda live?", "Brunford"),
    ("The Orlo bridge was built in 1874. When was the Orlo bridge built?", "1874"),
    ("A glim costs seven crowns. What does a glim cost?", "seven"),
    ("Doctor Fenn plays the oboe. What does doctor Fenn play?", "oboe"),
    ("Lake Morra is 340 m deep. How deep is lake Morra?", "340"),
    ("The village of Ost has 52 houses. How many houses has the village of Ost?", "52"),
];

/// The cases of an evaluation, one JSON object a line.
pub fn cases(indent: &str, suffix: &str) -> String {
    FACTS
        .iter()
        .enumerate()
        .map(|(at, (question, fact))| {
            format!(
                "{indent}{}\n",
                json!({"id": format!("fact-{at}"), "question": format!("{question}{suffix}"), "expected": fact})
            )
        })
        .collect()
}

/// Users who ask until they are stopped. Each asks once and likes an answer that is not longer than suits them: from 36
/// to 76 characters, a matter of who it is.
pub struct Readers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Readers {
    /// `first` is the number of the first user: every test has users of its own.
    pub fn start(gateway: &Gateway, flow: &str, first: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let next = Arc::new(AtomicUsize::new(first));
        let tasks = (0..3)
            .map(|_| {
                let (gateway, flow) = (gateway.clone(), flow.to_owned());
                let (stop, answered, next) = (stop.clone(), answered.clone(), next.clone());
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let user = next.fetch_add(1, Ordering::Relaxed);
                        match read(&gateway, &flow, user).await {
                            Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                            Err(error) => failures.push(format!("{error:#}")),
                        }
                    }
                    failures
                })
            })
            .collect();
        Self { stop, answered, tasks }
    }

    /// Stops them. An error when a single request failed, or nobody asked.
    pub async fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for task in self.tasks {
            failures.extend(task.await?);
        }
        let answered = self.answered.load(Ordering::Relaxed);
        ensure!(
            failures.is_empty(),
            "{} of {} requests failed, the first: {:?}",
            failures.len(),
            answered + failures.len(),
            failures.first()
        );
        ensure!(answered > 0, "nobody asked");
        Ok(answered)
    }
}

async fn read(gateway: &Gateway, flow: &str, user: usize) -> Result<()> {
    let name = format!("reader-{user}");
    let (question, _) = FACTS[user % FACTS.len()];
    let answer = gateway.ask(flow, question, &name).await?;
    let length = answer["answer"].as_str().context("an answer")?.chars().count();
    let tolerance = 36 + usize::from(bucket("tolerance", &name) % 41);
    let thumbs = if length <= tolerance { "up" } else { "down" };
    let feedback = json!({"requestId": answer["requestId"], "thumbs": thumbs});
    let response = gateway.request(reqwest::Method::POST, "/v1/feedback").json(&feedback).send().await?;
    ensure!(response.status() == 202, "feedback: {}", response.status());
    Ok(())
}
