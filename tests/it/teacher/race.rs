//! Two runs at once on one store: nothing is asked twice.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use serde_json::Value;

use super::{KEY, Server, ends::Door, ends::limited, ends::send, ends::start, ends::until, error, pair, ran, run, said};
use crate::project::Project;

/// A run that says what happens.
struct Second {
    child: Child,
    events: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Second {
    fn start(project: &Project, options: &[&str]) -> Self {
        let words: Vec<&str> = ["run", "pipeline.yaml", "--json"].iter().chain(options).copied().collect();
        let mut command: Command = project.command(&words);
        command.env("TEACHER_KEY", KEY).env("NO_PROXY", "127.0.0.1").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("starts");
        let events = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, events }
    }

    /// The next event of a kind.
    fn event(&mut self, kind: &str) -> Value {
        let mut events = self.events.by_ref().map(|line| serde_json::from_str::<Value>(&line.expect("read")).expect("JSON"));
        events.find(|event| event["event"] == kind).expect("it ended without")
    }

    fn end(mut self) -> i32 {
        self.events.by_ref().for_each(drop);
        self.child.wait().expect("ends").code().unwrap_or(-1)
    }
}

/// A server that answers about the first unit, and about the others once the door is open.
fn held() -> (Server, Arc<Door>) {
    let door = Arc::new(Door::default());
    let held = door.clone();
    let server = Server::start(move |asked, _| {
        if asked.unit != "unit-00" {
            held.pass();
        }
        said(&pair(&asked.unit), "stop")
    });
    (server, door)
}

#[test]
fn the_second_run_waits_and_takes_what_the_first_one_made() {
    let (server, door) = held();
    let project = limited(&server, 30, 4);
    let mut first = start(&project);
    until(|| server.waiting() >= 4);
    let mut second = Second::start(&project, &[]);
    let waits = second.event("waiting");
    assert_eq!(waits["stage"], "qa");
    assert!(waits["holder"].as_str().expect("a name").starts_with(&format!("process {} on ", first.id())), "{waits}");
    door.open();
    assert!(first.wait().expect("ends").success());
    assert_eq!(second.event("cached")["stage"], "qa");
    assert_eq!(second.end(), 0);
    assert_eq!((server.requests(), project.rows("qa", &[]).len()), (30, 30));
}

#[test]
fn when_the_first_run_is_killed_the_second_one_goes_on_from_its_answers() {
    let (server, door) = held();
    let project = limited(&server, 30, 4);
    let mut first = start(&project);
    until(|| server.waiting() >= 4);
    let mut second = Second::start(&project, &[]);
    second.event("waiting");
    send("-KILL", &first);
    first.wait().expect("ends");
    second.event("started");
    door.open();
    assert_eq!(second.end(), 0);
    assert_eq!(project.rows("qa", &[]).len(), 30);
    let twice: Vec<String> = server.by_unit().into_iter().filter(|(_, asked)| *asked > 1).map(|(unit, _)| unit).collect();
    assert!(twice.len() <= 4 && !twice.contains(&"unit-00".to_owned()), "only what was in flight: {twice:?}");
}

#[test]
fn when_the_first_run_fails_the_second_one_goes_on_from_its_answers() {
    let door = Arc::new(Door::default());
    let held = door.clone();
    let server = Server::start(move |asked, before| match asked.unit.as_str() {
        "unit-29" if before == 0 => {
            held.pass();
            error(402, "no credit left")
        }
        _ => said(&pair(&asked.unit), "stop"),
    });
    let project = limited(&server, 30, 4);
    let mut first = start(&project);
    until(|| server.requests() >= 29);
    let mut second = Second::start(&project, &[]);
    second.event("waiting");
    door.open();
    assert_eq!(first.wait().expect("ends").code(), Some(1));
    assert_eq!(second.end(), 0);
    assert_eq!((server.requests(), project.rows("qa", &[]).len()), (31, 30), "unit-29 twice, nothing else");
}

#[test]
fn two_runs_do_not_spend_from_one_budget_at_once() {
    let (server, door) = held();
    let project = limited(&server, 30, 4);
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    let priced = pipeline.replace("max_in_flight: 4", "max_in_flight: 4\n    price: { input: 1, output: 1 }");
    project.write("pipeline.yaml", format!("{priced}budget: {{ usd: 1.0 }}\n"));
    let mut first = start(&project);
    until(|| server.waiting() >= 4);
    // Another stage as far as the store knows, and so nothing to wait for.
    project.write("pipeline.yaml", format!("{}budget: {{ usd: 1.0 }}\n", priced.replace("pairs: 1", "pairs: 2")));
    let second = run(&project, &[], KEY);
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&format!("another run of this pipeline holds its budget (process {} on ", first.id())), "{stderr}");
    door.open();
    assert!(first.wait().expect("ends").success());
    ran(&run(&project, &[], KEY));
}
