//! A training that is killed goes on where it was, and gives the bits of one that wasn't.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::project::{Project, Said};

const PIPELINE: &str = r#"pipeline: training
seed: 7
stages:
  documents: { op: read, path: "docs/*.md" }
  words: { op: tokenizer, from: documents, vocabulary: 259 }
  base: { op: checkpoint, from: words, preset: tiny }
  mixture: { op: mix, from: { sources: documents, tokenizer: words }, tokens: 60k }
  student:
    op: train
    from: { mixture: mixture, base: base }
    sequence: 64
    heldout: 0.1
    evaluate_every: 50
    save_every: 20
"#;

fn project() -> Project {
    let project = Project::new();
    for n in 0..20 {
        let text =
            format!("Station {n} stands on rock {}, {} metres above the sea, and its keeper is keeper {}.", n * 7, n + 11, n * n);
        project.write(&format!("docs/{n}.md"), text);
    }
    project.write("pipeline.yaml", PIPELINE);
    project
}

/// What is saved of the training, by steps.
fn saved(project: &Project) -> BTreeSet<u64> {
    let stages = fs::read_dir(project.path(".cache/progress")).into_iter().flatten().flatten();
    let generations = stages.flat_map(|stage| fs::read_dir(stage.path()).into_iter().flatten().flatten());
    let saves = generations.flat_map(|generation| fs::read_dir(generation.path()).into_iter().flatten().flatten());
    saves.filter_map(|save| save.file_name().to_str()?.parse().ok()).collect()
}

/// The process that trains for a run.
fn worker(run: &Child) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", run.id())).ok()?.flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()?.split(' ').next()?.parse().ok()).next()
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        match entry.path().is_dir() {
            true => copied(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).expect("copied")),
        }
    }
}

fn kill(process: u32) {
    let status = Command::new("kill").args(["-9", &process.to_string()]).status().expect("kill");
    assert!(status.success());
}

/// Starts a run, and waits until it has saved what it reached beyond `steps` twice; gives the run and all that was seen saved.
fn trained_beyond(project: &Project, steps: u64) -> (Child, BTreeSet<u64>) {
    let words = ["run", "pipeline.yaml", "--json"];
    let run = project.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut seen = BTreeSet::new();
    while seen.iter().filter(|save| **save > steps).count() < 2 {
        seen.append(&mut saved(project));
        assert!(Instant::now() < deadline, "the training stands still: {seen:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    (run, seen)
}

#[test]
fn a_training_that_is_killed_twice_gives_the_same_bits() {
    let undisturbed = project();
    undisturbed.ran(&[]);
    assert!(saved(&undisturbed).is_empty(), "nothing is left of a training that is done");

    let project = project();
    let (run, seen) = trained_beyond(&project, 0);
    kill(worker(&run).expect("a process that trains"));
    let ended = Said::of(&run.wait_with_output().expect("an end"));
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("ended without a result"), "{}", ended.stderr);

    // It is kept as long as it is young; what nobody goes on with, `gc` removes (of another machine's cache here).
    let elsewhere = project.path("elsewhere");
    copied(&project.path(".cache/progress"), &elsewhere.join("progress"));
    let gc = |grace: &str, dry: &[&str]| -> Value {
        let words = [&["gc", "pipeline.yaml", "--json", "--grace", grace], dry].concat();
        let output = project.command(&words).env("INGRAIN_CACHE", &elsewhere).output().expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    assert_eq!(gc("1h", &[])["unfinished"]["stages"], 0);
    let would = gc("0s", &["--dry-run"]);
    assert!(would["unfinished"]["bytes"].as_u64() > Some(1_000_000), "{would}");
    assert_eq!(gc("0s", &[])["unfinished"], would["unfinished"]);
    assert_eq!(gc("0s", &[])["unfinished"]["stages"], 0);

    let first = *seen.last().expect("something saved");
    let (mut run, seen) = trained_beyond(&project, first);
    let process = worker(&run).expect("a process that trains");
    run.kill().expect("killed");
    // It may have ended by itself: its run is gone.
    let _ = Command::new("kill").args(["-9", &process.to_string()]).stderr(Stdio::null()).status();
    run.wait().expect("an end");
    assert!(seen.first() >= Some(&first), "it went on from step {first}, and didn't begin anew: {seen:?}");

    let said = project.ran(&[]);
    assert_eq!(said.executed(), ["student"]);
    assert!(saved(&project).is_empty());
    assert_eq!(project.digests(".ingrain", "training"), undisturbed.digests(".ingrain", "training"));
    assert_eq!(project.rows("student.metrics", &[]), undisturbed.rows("student.metrics", &[]));
}
