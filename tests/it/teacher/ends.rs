//! How a run ends, and what becomes of the calls that are on their way then.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
};

use serde_json::Value;

use super::{KEY, Reply, Server, error, pair, project, ran, run, said, url};
use crate::{cache::walk, project::Project};

/// Holds answers back until it is opened.
#[derive(Default)]
pub(super) struct Door {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Door {
    pub(super) fn pass(&self) {
        let open = self.open.lock().expect("not poisoned");
        let _open = self.changed.wait_while(open, |open| !*open).expect("not poisoned");
    }

    pub(super) fn open(&self) {
        *self.open.lock().expect("not poisoned") = true;
        self.changed.notify_all();
    }
}

pub(super) fn limited(server: &Server, units: usize, in_flight: usize) -> Project {
    let project = project(&url(server), units, "");
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace("stages:\n", &format!("    max_in_flight: {in_flight}\nstages:\n")));
    project
}

pub(super) fn start(project: &Project) -> Child {
    let mut command = project.command(&["run", "pipeline.yaml", "--json"]);
    command.env("TEACHER_KEY", KEY).env("NO_PROXY", "127.0.0.1").stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("starts")
}

pub(super) fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
}

pub(super) fn until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "it never came to that");
        std::thread::yield_now();
    }
}

/// Waits until a run says that it is interrupted.
fn interrupted(child: &mut Child) {
    let said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut lines = said.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("waiting for answers that are paid for")), "it ended without a word");
}

#[test]
fn an_interrupt_waits_for_calls_on_their_way_and_keeps_their_answers() {
    for signal in ["-INT", "-TERM"] {
        let door = Arc::new(Door::default());
        let held = door.clone();
        let server = Server::start(move |asked, _| {
            // The first one goes ahead alone and shows that the server is in order.
            if asked.unit != "unit-00" {
                held.pass();
            }
            said(&pair(&asked.unit), "stop")
        });
        let project = limited(&server, 60, 8);
        let mut child = start(&project);
        until(|| server.waiting() >= 8);
        send(signal, &child);
        // Only then do the answers come.
        interrupted(&mut child);
        door.open();
        assert_eq!(child.wait().expect("ends").code(), Some(130));
        let asked = server.requests();
        assert!((8..=12).contains(&asked), "{asked} requests");
        let events = crate::openlineage::events(&project.path(".ingrain")).remove(0);
        let of = |kind: &str| events.iter().filter(|event| event["eventType"] == kind).count();
        assert_eq!((of("ABORT"), of("START")), (2, of("COMPLETE") + 2), "the stage that asked, and the run");
        let record = walk(&project.path(".ingrain/runs")).remove(0);
        let record: Value = serde_json::from_slice(&std::fs::read(record).expect("read")).expect("JSON");
        assert_eq!((&record["result"], &record["stages"]["qa"]["state"]), (&"interrupted".into(), &"interrupted".into()));
        ran(&run(&project, &[], KEY));
        assert_eq!((server.requests(), project.rows("qa", &[]).len()), (60, 60), "nothing is asked twice");
    }
}

#[test]
fn a_second_interrupt_ends_it_at_once() {
    let server = Server::start(|_, _| Reply::Hang);
    let project = limited(&server, 10, 4);
    let mut child = start(&project);
    until(|| server.waiting() >= 1);
    send("-INT", &child);
    interrupted(&mut child);
    send("-INT", &child);
    assert_eq!(child.wait().expect("ends").code(), Some(130));
}

#[test]
fn an_outage_keeps_what_others_are_answered_meanwhile() {
    let door = Arc::new(Door::default());
    let held = door.clone();
    let server = Server::start(move |asked, _| match asked.unit.as_str() {
        "unit-00" => said(&pair(&asked.unit), "stop"),
        "unit-05" => {
            held.open();
            error(402, "no credit left")
        }
        _ => {
            held.pass();
            said(&pair(&asked.unit), "stop")
        }
    });
    let project = limited(&server, 60, 60);
    let output = run(&project, &[], KEY);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let before = server.by_unit();
    let healed = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace(&url(&server), &url(&healed)));
    ran(&run(&project, &[], KEY));
    assert_eq!(project.rows("qa", &[]).len(), 60);
    let twice: Vec<String> = healed.by_unit().into_keys().filter(|unit| before.contains_key(unit) && unit != "unit-05").collect();
    assert_eq!(twice, Vec::<String>::new(), "what was on its way was answered, and kept");
}

#[test]
fn rejected_rows_are_asked_about_again_when_that_is_wanted() {
    let server = Server::start(|asked, before| match asked.unit.as_str() {
        "unit-03" if before < 4 => said("nothing of use", "stop"),
        _ => said(&pair(&asked.unit), "stop"),
    });
    let project = project(&url(&server), 12, "");
    ran(&run(&project, &[], KEY));
    assert_eq!((server.requests(), project.rows("qa", &[]).len(), project.rows("qa.rejects", &[]).len()), (14, 11, 1));
    ran(&run(&project, &["--force", "qa"], KEY));
    assert_eq!(server.requests(), 14, "forcing asks nothing");
    let retried = run(&project, &["--retry-rejects"], KEY);
    ran(&retried);
    let events = String::from_utf8_lossy(&retried.stdout).into_owned();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let started = events.iter().find(|event| event["event"] == "started" && event["stage"] == "qa").expect("it started");
    assert_eq!(started["reasons"][0], "`--retry-rejects`, and 1 rows are rejected");
    assert_eq!((server.requests(), project.rows("qa", &[]).len(), project.rows("qa.rejects", &[]).len()), (16, 12, 0));
    ran(&run(&project, &["--force", "qa"], KEY));
    assert_eq!((server.requests(), project.rows("qa", &[]).len()), (16, 12), "the later attempt is found again");
    ran(&run(&project, &["--retry-rejects"], KEY));
    assert_eq!(server.requests(), 16, "nothing is rejected any more");
}

#[test]
fn a_prompt_that_changes_while_its_stage_runs_is_no_wrong_hit() {
    const BEFORE: &str = "Ask one question about: {{ text }}";
    let prompt: Arc<Mutex<Option<std::path::PathBuf>>> = Arc::default();
    let place = prompt.clone();
    let server = Server::start(move |asked, _| {
        if let Some(path) = place.lock().expect("not poisoned").take() {
            std::fs::write(path, "Something else about: {{ text }}").expect("written");
        }
        said(&pair(&asked.unit), "stop")
    });
    let project = limited(&server, 40, 2);
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace("pairs: 1,", "pairs: 1, prompt: prompt.jinja,"));
    project.write("prompt.jinja", BEFORE);
    *prompt.lock().expect("not poisoned") = Some(project.path("prompt.jinja"));
    // Far more partitions than run at once: some begin after the change.
    let small = ["--part-bytes", "64"];
    let output = run(&project, &small, KEY);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("prompt.jinja` (field `prompt`) changed while the stage ran"), "{stderr}");
    project.write("prompt.jinja", BEFORE);
    ran(&run(&project, &small, KEY));
    let fresh = run(&project, &["--part-bytes", "64", "--store", "fresh"], KEY);
    ran(&fresh);
    assert_eq!(project.digests(".ingrain", "taught"), project.digests("fresh", "taught"));
}

#[test]
fn a_pipeline_file_that_changes_while_it_runs_is_told() {
    let file: Arc<Mutex<Option<std::path::PathBuf>>> = Arc::default();
    let place = file.clone();
    let server = Server::start(move |asked, _| {
        if let Some(path) = place.lock().expect("not poisoned").take() {
            std::fs::write(path, "pipeline: another").expect("written");
        }
        said(&pair(&asked.unit), "stop")
    });
    let project = project(&url(&server), 3, "");
    *file.lock().expect("not poisoned") = Some(project.path("pipeline.yaml"));
    let output = run(&project, &[], KEY);
    ran(&output);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("`pipeline.yaml` has changed since this run began"), "{stderr}");
}
