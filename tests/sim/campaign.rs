//! Stories under every fault, and under random ones.
//!
//! `make sim` runs a fixed set. `make soak SEEDS=n` runs as many random cases more, `make sim-replay CASE='…'` one case,
//! with its timeline. A failing random case is made smaller before it is shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::faults::{Badness, Case, Fault, OnWrite, Sudden, draw};
use crate::scenario::{Run, Story, judge, run};
use crate::{evaluation, model_deployment, prompt_flow, rag_index, rollout};

/// Random cases of `make sim`.
const CASES: u64 = 120;
/// Places at which answers are lost in one story.
const LOST: usize = 16;
/// Runs that may be spent on making a failing case smaller.
const SHRINKING: usize = 120;
/// Failures after which no more cases are run.
const ENOUGH: usize = 5;

/// All stories. A new kind joins with a file of stories, and a line here.
pub fn stories() -> Vec<&'static Story> {
    [model_deployment::STORIES, prompt_flow::STORIES, rag_index::STORIES, evaluation::STORIES, rollout::STORIES]
        .concat()
}

fn story(name: &str) -> &'static Story {
    let all = stories();
    let found = all.iter().find(|story| story.name == name);
    found.unwrap_or_else(|| {
        let names: Vec<&str> = all.iter().map(|story| story.name).collect();
        panic!("there is no story {name:?}; there are {}", names.join(", "))
    })
}

/// The run of a story in which nothing goes wrong; it is made once.
fn plain(story: &'static Story) -> Arc<Run> {
    type Once = Arc<OnceLock<Arc<Run>>>;
    static RUNS: Mutex<BTreeMap<&str, Once>> = Mutex::new(BTreeMap::new());
    let cell = RUNS.lock().expect("no panic with the lock held").entry(story.name).or_default().clone();
    cell.get_or_init(|| Arc::new(run(story, &without_faults(story, 1, 1)))).clone()
}

fn without_faults(story: &Story, seed: u64, replicas: u8) -> Case {
    Case { story: story.name.to_owned(), seed, replicas, faults: Vec::new() }
}

/// Runs a case. Gives what was broken, and the timeline.
fn outcome(case: &Case) -> (Vec<String>, Run) {
    let story = story(&case.story);
    let run = run(story, case);
    (judge(&plain(story), case, &run), run)
}

/// The story without a fault, and with two processes, comes to the same end and to rest.
pub fn comes_to_rest(name: &str) {
    for (seed, replicas) in [(1, 1), (2, 1), (3, 2)] {
        let case = without_faults(story(name), seed, replicas);
        let (faults, run) = outcome(&case);
        assert!(run.requests > 0, "{name}: the operator wrote nothing:\n{}", run.timeline);
        assert!(faults.is_empty(), "{}", report(&case, &faults, &run.timeline));
    }
}

/// The story with a crash after each request to write.
pub fn with_each_crash(name: &str) {
    with(name, OnWrite::Crash, 1);
}

/// The story with a lost answer to requests from its beginning to its end: in long ones not to each.
pub fn with_lost_answers(name: &str) {
    with(name, OnWrite::Lost, plain(story(name)).requests / LOST + 1);
}

fn with(name: &str, what: OnWrite, every: usize) {
    let plain = plain(story(name));
    let cases = (1..=plain.requests)
        .step_by(every)
        .map(|at| Case { faults: vec![Fault::Write(at, what)], ..without_faults(story(name), 1, 1) });
    let mut unreached = 0;
    let mut failures = Vec::new();
    for case in cases {
        let (faults, run) = outcome(&case);
        unreached += usize::from(!run.reached);
        if !faults.is_empty() {
            failures.push(report(&case, &faults, &run.timeline));
        }
    }
    // Two observations that arrive together become one write, so a run may be a little shorter than the plain one.
    assert!(unreached <= 2, "{name}: {unreached} of {} planned faults did not happen", plain.requests);
    let first = failures.first().map(String::as_str).unwrap_or_default();
    assert!(failures.is_empty(), "{} of {} cases fail; the first:\n{first}", failures.len(), plain.requests);
}

/// The tests of each story.
macro_rules! tests_of {
    ($($module:ident: $story:literal,)*) => {
        $(mod $module {
            use crate::campaign::{comes_to_rest, with_each_crash, with_lost_answers};

            #[test]
            fn comes_to_the_same_end_and_to_rest() {
                comes_to_rest($story);
            }

            #[test]
            fn a_crash_after_any_write_changes_nothing() {
                with_each_crash($story);
            }

            #[test]
            fn a_lost_answer_changes_nothing() {
                with_lost_answers($story);
            }
        })*

        #[test]
        fn every_story_is_tested() {
            let names: Vec<&str> = stories().iter().map(|story| story.name).collect();
            assert_eq!(names, [$($story),*]);
        }
    };
}

tests_of! {
    model_life: "model.life",
    model_download: "model.download",
    model_digest: "model.digest",
    model_image: "model.image",
    model_recreate: "model.recreate",
    model_heal: "model.heal",
    model_again: "model.again",
    model_gates: "model.gates",
    flow_life: "flow.life",
    index_life: "index.life",
    index_heal: "index.heal",
    index_gates: "index.gates",
    evaluation_life: "evaluation.life",
    rollout_life: "rollout.life",
    rollout_people: "rollout.people",
}

/// Random faults of a seed.
struct Draw {
    case: Case,
    tree: Box<dyn ValueTree<Value = Vec<Fault>>>,
}

fn draw(seed: u64) -> Draw {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let mut rng = fastrand::Rng::with_seed(seed);
    let all = stories();
    let story = all[rng.usize(..all.len())];
    let replicas = if rng.u8(..3) == 0 { 2 } else { 1 };
    let faults = draw::faults(story.steps.len(), plain(story).requests);
    let tree = faults.new_tree(&mut runner).expect("nothing is rejected");
    let case = Case { story: story.name.to_owned(), seed, replicas, faults: tree.current() };
    Draw { case, tree: Box::new(tree) }
}

impl Draw {
    /// The smallest case found that still breaks the same property.
    fn shrunk(mut self, broken: &str) -> Case {
        let mut best = self.case.clone();
        for _ in 0..SHRINKING {
            let smaller = Case { faults: self.tree.current(), ..self.case.clone() };
            let fails = smaller == best || outcome(&smaller).0.iter().any(|fault| property(fault) == broken);
            if fails {
                best = smaller;
            }
            let more = if fails { self.tree.simplify() } else { self.tree.complicate() };
            if !more {
                break;
            }
        }
        // One process is simpler than two, if it fails too.
        let single = Case { replicas: 1, ..best.clone() };
        let still = best.replicas > 1 && outcome(&single).0.iter().any(|fault| property(fault) == broken);
        if still { single } else { best }
    }
}

/// The name of the property in a line about what is broken.
fn property(fault: &str) -> &str {
    let at = fault.find('P').unwrap_or(0);
    fault[at..].split(':').next().unwrap_or_default()
}

fn report(case: &Case, faults: &[String], timeline: &str) -> String {
    let mut text = format!("{case}\n");
    for fault in faults.iter().take(20) {
        let _ = writeln!(text, "  {fault}");
    }
    let _ = writeln!(text, "again: make sim-replay CASE='{case}'\n{timeline}");
    text
}

/// Runs cases on all processors. Gives reports of those that fail, made smaller; or of the first that fails, as it is.
fn soak(seeds: std::ops::Range<u64>, told: bool, first_only: bool) -> Vec<String> {
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    let enough = if first_only { 1 } else { ENOUGH };
                    let full = failures.lock().expect("no panic with the lock held").len() >= enough;
                    if full || !seeds.contains(&seed) {
                        return;
                    }
                    if told && seed.is_multiple_of(100) {
                        eprintln!("seed {seed} of {}", seeds.end - 1);
                    }
                    let drawn = draw(seed);
                    let (faults, _) = outcome(&drawn.case);
                    if let Some(first) = faults.first() {
                        let broken = property(first).to_owned();
                        eprintln!("seed {seed} fails ({broken}): {}", drawn.case);
                        let original = drawn.case.clone();
                        let case = if first_only { drawn.case } else { drawn.shrunk(&broken) };
                        let (faults, run) = outcome(&case);
                        let report =
                            format!("seed {seed}, found as {original}\n{}", report(&case, &faults, &run.timeline));
                        failures.lock().expect("no panic with the lock held").push(report);
                    }
                }
            });
        }
    });
    failures.into_inner().expect("no panic with the lock held")
}

/// A step that finds something wrong panics, and the run goes on to tell of it: the default message would only confuse.
fn quiet_panics() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name().is_some() {
                usual(info);
            }
        }));
    });
}

#[test]
fn random_faults_change_nothing() {
    quiet_panics();
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(case) = variable("LLMOPS_SIM_CASE") {
        let case: Case = case.parse().unwrap_or_else(|error| panic!("LLMOPS_SIM_CASE: {error}"));
        let (faults, run) = outcome(&case);
        assert!(faults.is_empty(), "{}", report(&case, &faults, &run.timeline));
        println!("{case} holds\n{}", run.timeline);
        return;
    }
    let seeds = variable("LLMOPS_SIM_SEEDS").map(|text| {
        let (from, to) = text.split_once("..").unwrap_or(("1", &text));
        let number =
            |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("LLMOPS_SIM_SEEDS: {text:?} is no number"));
        number(from)..number(to) + 1
    });
    let told = seeds.is_some();
    let failures = soak(seeds.unwrap_or(1..CASES + 1), told, variable("LLMOPS_SIM_FIRST").is_some());
    assert!(failures.is_empty(), "{} cases fail\n{}", failures.len(), failures.join("\n"));
}

/// P7, for each kind and each way in which an object can be bad.
#[test]
fn bad_objects_delay_no_others() {
    let mut failures = Vec::new();
    for name in ["model.life", "flow.life", "index.life", "evaluation.life"] {
        for badness in [Badness::Undecodable, Badness::Refused, Badness::Hanging] {
            let faults = (0..4).map(|step| Fault::Moment(step, 0, Sudden::Neighbour(badness))).collect();
            let case = Case { faults, ..without_faults(story(name), 1, 1) };
            let (faults, run) = outcome(&case);
            if !faults.is_empty() {
                failures.push(report(&case, &faults, &run.timeline));
            }
        }
    }
    assert!(failures.is_empty(), "{} cases fail; the first:\n{}", failures.len(), failures[0]);
}

/// The same case twice, event for event: otherwise a failure could not be run again.
#[test]
fn a_case_runs_the_same_way_each_time() {
    for seed in 1..=6 {
        let case = draw(seed).case;
        let (first, second) = (outcome(&case).1, outcome(&case).1);
        assert_eq!(first.timeline, second.timeline, "{case}");
    }
}
