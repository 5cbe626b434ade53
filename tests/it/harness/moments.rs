//! kill -9 at many moments of a run, then run again: the tables of an undisturbed run.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    cache::{document, walk},
    project::Project,
};

const PIPELINE: &str = r#"pipeline: faults
seed: 3
models: { offline: { offline: {} } }
stages:
  documents: { op: read, path: "docs/*.md" }
  chunks: { op: chunk, from: documents, max_characters: 200, overlap_characters: 20 }
  qa: { op: synthesize_qa, from: chunks, teacher: offline, pairs: 3, draws: 2 }
  unique: { op: dedup, from: qa, column: question, within: doc_id }
"#;

const SMALL: [&str; 2] = ["--part-bytes", "1024"];

fn project() -> Project {
    let project = Project::new();
    for n in 0..16 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("pipeline.yaml", PIPELINE);
    project
}

/// Starts a run and kills it once the store holds `files` files. Gives whether it was still running.
fn kill_at(project: &Project, files: usize) -> bool {
    let words = ["run", "pipeline.yaml", "--store", "store", SMALL[0], SMALL[1]];
    let mut child = project.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let store = project.path("store");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        if store.is_dir() && count(&store) >= files {
            break;
        }
        assert!(Instant::now() < deadline, "the run stands still");
        std::thread::yield_now();
    }
    // SIGKILL: nothing in the process gets to run.
    child.kill().expect("killed");
    !child.wait().expect("a status").success()
}

/// Files below a folder that changes meanwhile.
fn count(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

#[test]
fn a_killed_run_goes_on_to_the_same_tables() {
    let project = project();
    project.ran(&["--store", "undisturbed", SMALL[0], SMALL[1]]);
    let expected = project.digests("undisturbed", "faults");
    let total = count(&project.path("undisturbed"));
    let mut killed = 0;
    for tenth in 1..10 {
        let _ = std::fs::remove_dir_all(project.path("store"));
        let _ = std::fs::remove_dir_all(project.path(".cache"));
        killed += usize::from(kill_at(&project, total * tenth / 10));
        project.ran(&["--store", "store", SMALL[0], SMALL[1]]);
        // A second run writes no record of its own when nothing is left to do; the digests are those of the last that did.
        assert_eq!(project.digests("store", "faults"), expected, "killed at {tenth} tenths");
        assert_eq!(project.ran(&["--store", "store", SMALL[0], SMALL[1]]).executed(), Vec::<&str>::new());
    }
    assert!(killed >= 5, "only {killed} runs were still going when they were killed");
}

#[test]
fn one_run_killed_again_and_again_ends_right() {
    let project = project();
    project.ran(&["--store", "undisturbed", SMALL[0], SMALL[1]]);
    let total = count(&project.path("undisturbed"));
    for tenth in 1..10 {
        kill_at(&project, total * tenth / 10);
    }
    project.ran(&["--store", "store", SMALL[0], SMALL[1]]);
    assert_eq!(project.digests("store", "faults"), project.digests("undisturbed", "faults"));
}

/// Starts a run, lets it come to `stage`, and kills it when `here` holds; gives whether it was still running.
fn kill_in(project: &Project, stage: &str, here: impl Fn(&std::path::Path) -> bool) -> bool {
    let words = ["run", "pipeline.yaml", "--store", "store", "--json", SMALL[0], SMALL[1]];
    let mut child = project.command(&words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let events = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let begun = format!("\"event\":\"started\",\"stage\":\"{stage}\"");
    let mut started = events.map_while(Result::ok);
    assert!(started.any(|event| event.contains(&begun)), "`{stage}` never started");
    // Nobody reads the pipe any more: what is left of the run fits into it.
    let store = project.path("store");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !here(&store) && child.try_wait().expect("a child").is_none() {
        assert!(Instant::now() < deadline, "the run stands still");
        std::thread::yield_now();
    }
    child.kill().expect("killed");
    !child.wait().expect("a status").success()
}

#[test]
fn a_run_killed_within_a_stage_or_a_commit_goes_on() {
    let project = project();
    project.ran(&["--store", "undisturbed", SMALL[0], SMALL[1]]);
    let expected = project.digests("undisturbed", "faults");
    let mut killed = Vec::new();
    for (place, stage) in ["documents", "chunks", "qa", "unique"].into_iter().enumerate() {
        // In the middle of its partitions, and when its manifest is written but perhaps not its action.
        for commit in [false, true] {
            let _ = std::fs::remove_dir_all(project.path("store"));
            let _ = std::fs::remove_dir_all(project.path(".cache"));
            let parts = std::cell::Cell::new(None);
            let running = kill_in(&project, stage, |store| match commit {
                true => count(&store.join("manifests")) > place,
                false => {
                    let now = count(&store.join("parts"));
                    now >= parts.get().unwrap_or_else(|| {
                        parts.set(Some(now + 4));
                        now + 4
                    })
                }
            });
            if running {
                killed.push((stage, commit, count(&project.path("store/manifests")), count(&project.path("store/actions"))));
            }
            let said = project.ran(&["--store", "store", SMALL[0], SMALL[1]]);
            assert_eq!(project.digests("store", "faults"), expected, "killed in `{stage}`, commit: {commit}");
            assert!(running == said.executed().contains(&stage) || commit, "`{stage}` goes on after {killed:?}");
        }
    }
    assert!(killed.iter().filter(|(_, commit, ..)| !commit).count() >= 3, "killed within {killed:?}");
    assert!(killed.iter().filter(|(_, commit, ..)| *commit).count() >= 2, "killed within {killed:?}");
}

#[test]
fn two_runs_on_one_store_give_one_artifact() {
    let project = project();
    project.ran(&["--store", "undisturbed", SMALL[0], SMALL[1]]);
    let words = ["run", "pipeline.yaml", "--store", "store", "--json", SMALL[0], SMALL[1]];
    let start = || project.command(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let (first, second) = (start(), start());
    for child in [first, second] {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(project.digests("store", "faults"), project.digests("undisturbed", "faults"));
    let actions = walk(&project.path("store/actions"));
    assert_eq!(actions.len(), 4, "one action a stage: {actions:?}");
}
