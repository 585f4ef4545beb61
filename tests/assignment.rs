//! The Python reference in `docs/reference/assignment.md` is run as it stands there and gives the same arms.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::process::{Command, Stdio};

use llmops::experiment::assignment::{arm, bucket};

const UNITS: usize = 100_000;
const SALT: &str = "team-a/docs";
/// The last two do not sum to 100: some units have no arm.
const TABLES: [&[i32]; 4] = [&[95, 5], &[50, 25, 25], &[0, 60, 0, 30], &[1]];

/// Units of several kinds: names, addresses, text beyond ASCII, long and empty ones.
fn unit(number: usize) -> String {
    match number % 5 {
        0 => format!("user-{number}"),
        1 => format!("änne+{number}@example.com"),
        2 => format!("{number:036}"),
        3 => format!("東京 {}", "x".repeat(number % 90)),
        _ => "y".repeat(number % 200),
    }
}

#[test]
fn the_reference_in_python_gives_the_same_arms() {
    let page = include_str!("../docs/reference/assignment.md");
    let reference =
        page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of Python");
    let lines = reference.lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 10, "the reference has {lines} lines; it should stay readable at a glance");
    let program = format!(
        "{reference}\nimport sys\nfor line in sys.stdin.buffer.read().decode().split('\\n')[:-1]:\n    b = bucket('{SALT}', line)\n    print(b, *[arm(b, table) for table in {TABLES:?}])\n"
    );
    let mut python = Command::new("python3")
        .args(["-c", &program])
        .env("PYTHONIOENCODING", "utf-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut input = python.stdin.take().unwrap();
    let text: String = (0..UNITS).map(|number| unit(number) + "\n").collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).unwrap();
    let mut compared = 0;
    for (number, line) in stdout.lines().enumerate() {
        let bucket = bucket(SALT, &unit(number));
        let arms = TABLES
            .map(|table| arm(bucket, table.iter().copied()).map_or_else(|| "None".to_owned(), |arm| arm.to_string()));
        assert_eq!(line, format!("{bucket} {}", arms.join(" ")), "unit {:?}", unit(number));
        compared += 1;
    }
    assert_eq!(compared, UNITS);
}
