//! Stores and corpora on S3: the same tables as on a local disk, at a bounded number of requests, and messages that say what is
//! wrong with a bucket.

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cache::{document, walk},
    project::{Project, Said},
    s3_server::Server,
};

const STAGES: &str = r#"
  chunks: { op: chunk, from: documents, max_characters: 200, overlap_characters: 20 }
  unique: { op: dedup, from: chunks, column: text }
  long: { op: filter, from: unique, where: "length(text) > 20" }
  halves: { op: split, from: long, heldout: 0.25 }
  words: { op: tokenizer, from: documents, vocabulary: 300 }
  pieces: { op: chunk, from: { documents: documents, tokenizer: words }, max_tokens: 60 }
"#;

/// Small parts, so that every stage has several partitions.
const SMALL: [&str; 2] = ["--part-bytes", "2048"];
const STORE: &str = "s3://team/ingrain/one";

fn pipeline(top: &str, path: &str) -> String {
    format!("pipeline: cloud\nseed: 3\n{top}stages:\n  documents: {{ op: read, path: \"{path}\" }}{STAGES}")
}

fn project() -> Project {
    let project = Project::new();
    for n in 0..8 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("pipeline.yaml", pipeline("", "docs/**/*.md"));
    project
}

/// The binary with nothing in its environment that leads to a bucket.
fn command(project: &Project, words: &[&str]) -> Command {
    let mut command = project.command(words);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    // No role of this machine's, and no proxy.
    command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9").env("NO_PROXY", "*");
    command
}

/// The binary with `server` in the AWS variables.
fn on(server: &Server, project: &Project, words: &[&str]) -> Command {
    let mut command = command(project, words);
    command
        .env("AWS_ENDPOINT_URL", &server.endpoint)
        .env("AWS_ACCESS_KEY_ID", &server.key_id)
        .env("AWS_SECRET_ACCESS_KEY", &server.key)
        .env("AWS_REGION", "us-east-1");
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run on the store of `server`, which must succeed.
fn ran(server: &Server, project: &Project, options: &[&str]) -> Said {
    let words: Vec<&str> =
        ["run", "pipeline.yaml", "--json", "--store", STORE].iter().chain(&SMALL).chain(options).copied().collect();
    let said = Said::of(&output(&mut on(server, project, &words)));
    assert_eq!(said.code, 0, "{}\n{:?}", said.stderr, said.events);
    said
}

/// The digests of every output of the last run on `server`.
fn digests(server: &Server) -> Value {
    let objects = server.objects();
    let last = objects.iter().rfind(|(name, _)| name.starts_with("team/ingrain/one/runs/cloud/")).expect("a run");
    let record: Value = serde_json::from_slice(&last.1).expect("JSON");
    let stages = record["stages"].as_object().expect("stages");
    stages.iter().map(|(name, stage)| (name.clone(), stage["digests"].clone())).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn a_store_on_s3_holds_what_a_local_one_does_and_a_second_run_asks_little() {
    let (project, server) = (project(), Server::start("Store", &["team"]));
    project.ran(&SMALL);
    let first = ran(&server, &project, &[]);
    assert_eq!(first.executed().len(), 7);
    assert!(first.report("chunks")["partitions"].as_u64().expect("a number") > 2);
    assert_eq!(digests(&server), project.digests(".ingrain", "cloud"));
    let asked = server.requests();
    let blob = |line: &&String| line.starts_with("GET") && line.contains("tokenizer.json");
    assert_eq!(asked.iter().filter(blob).count(), 1, "the tokenizer is fetched once for all partitions");

    assert_eq!(ran(&server, &project, &[]).executed(), Vec::<&str>::new());
    let asked = server.requests();
    // A stage: which generations there are, the action, the manifest, the files. The run: the store's format, what is
    // forgotten, which run was the last, its record, and its own events.
    assert!(asked.len() <= 7 * 4 + 5, "{} requests:\n{}", asked.len(), asked.join("\n"));

    ran(&server, &project, &["--force", "pieces"]);
    assert_eq!(server.requests().iter().filter(blob).count(), 0, "another process finds it in the cache");

    // Looking writes nothing.
    for words in [["plan", "pipeline.yaml"].as_slice(), &["why", "pipeline.yaml", "long"], &["show", "pipeline.yaml", "long"]] {
        let words: Vec<&str> = words.iter().copied().chain(["--store", STORE]).collect();
        let shown = output(&mut on(&server, &project, &words));
        assert!(shown.status.success(), "{}", stderr(&shown));
        let asked = server.requests();
        assert!(asked.iter().all(|line| !line.starts_with("PUT") && !line.starts_with("POST")), "{}", asked.join("\n"));
    }
}

#[test]
fn corpus_and_store_on_two_servers_and_names_of_any_characters() {
    let (store, corpora) = (Server::start("Store", &["team"]), Server::start("Corpora", &["corpora"]));
    corpora.pages_of(2);
    let project = Project::new();
    let names = ["plain.md", "a b.md", "c#1.md", "50%.md", "50%20off.md", "what?.md", "sub/über+x&y.md", "sub/{1}.md"];
    for (n, name) in names.iter().enumerate() {
        corpora.put("corpora", &format!("docs/{name}"), document(n));
        project.write(&format!("docs/{name}"), document(n));
    }
    corpora.put("corpora", "docs/sub/", "");
    corpora.put("corpora", "elsewhere.md", document(99));
    project.write("pipeline.yaml", pipeline("", "docs/**/*.md"));
    project.ran(&SMALL);

    let top = format!(
        "s3:\n  corpora: {{ endpoint: \"{}\", key_id: \"${{secret:CORPORA_ID}}\", key: \"${{secret:CORPORA_KEY}}\" }}\n",
        corpora.endpoint
    );
    project.write("pipeline.yaml", pipeline(&top, "s3://corpora/docs/**/*.md"));
    let words = ["run", "pipeline.yaml", "--json", "--store", STORE, SMALL[0], SMALL[1]];
    let run = |words: &[&str]| {
        let mut command = on(&store, &project, words);
        output(command.env("CORPORA_ID", &corpora.key_id).env("CORPORA_KEY", &corpora.key))
    };
    let ran = run(&words);
    assert!(ran.status.success(), "{}", stderr(&ran));
    assert_eq!(digests(&store), project.digests(".ingrain", "cloud"));
    assert!(corpora.requests().iter().all(|line| line.starts_with("GET")), "a source is only read");

    let shown = run(&["show", "pipeline.yaml", "documents", "--store", STORE, "--json"]);
    let mut sources: Vec<String> = String::from_utf8_lossy(&shown.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a row")["source"].as_str().expect("a source").to_owned())
        .collect();
    sources.sort();
    let mut expected = names.map(|name| format!("docs/{name}"));
    expected.sort();
    assert_eq!(sources, expected);

    // Nothing of a credential is left anywhere.
    let secrets = [&store.key_id, &store.key, &corpora.key_id, &corpora.key];
    let clean = |name: &str, content: &[u8]| {
        for secret in secrets {
            let found = content.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "`{secret}` in {name}");
        }
    };
    for (name, content) in store.objects() {
        clean(&name, &content);
    }
    for file in walk(&project.path("")) {
        clean(&file, &std::fs::read(&file).expect("a file"));
    }
    for output in [&ran, &shown] {
        clean("stdout", &output.stdout);
        clean("stderr", &output.stderr);
    }

    // One of them isn't set: only who needs it says so.
    let failed = output(on(&store, &project, &words).env("CORPORA_ID", &corpora.key_id));
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("`CORPORA_KEY`"), "{}", stderr(&failed));
    // One file by its name is asked for, not searched for.
    project.write("pipeline.yaml", pipeline(&top, "s3://corpora/docs/50%.md"));
    corpora.requests();
    let one = run(&["run", "pipeline.yaml", "--until", "documents", "--store", STORE]);
    assert!(one.status.success(), "{}", stderr(&one));
    assert_eq!(corpora.requests().len(), 2, "its state and its content");
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_soon() {
    let (project, server) = (project(), Server::start("Store", &["team"]));
    let run = ["run", "pipeline.yaml", "--store", "s3://team/x"];
    let started = Instant::now();
    let says = |command: &mut Command, code: i32, message: &str| {
        let output = output(command);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(message), "`{message}` isn't in:\n{}", stderr(&output));
        assert!(!stderr(&output).contains("hunter2") && !stderr(&output).contains(&server.key_id), "{}", stderr(&output));
    };
    let nowhere = ["run", "pipeline.yaml", "--store", "s3://nowhere/x"];
    says(&mut on(&server, &project, &nowhere), 2, "doesn't exist");
    says(on(&server, &project, &run).env("AWS_SECRET_ACCESS_KEY", "hunter2-other"), 2, "the secret key is wrong");
    says(on(&server, &project, &run).env("AWS_ACCESS_KEY_ID", "AKIAhunter2"), 2, "doesn't know the id of the access key");
    says(on(&server, &project, &run).env_remove("AWS_SECRET_ACCESS_KEY"), 2, "go together");
    let mut without = on(&server, &project, &run);
    says(without.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY"), 2, "there are no credentials");
    says(on(&server, &project, &run).env("AWS_SKIP_SIGNATURE", "true"), 2, "can't be used without credentials");
    // Nobody listens there.
    says(on(&server, &project, &run).env("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), 2, "can't be reached");
    says(on(&server, &project, &run).env("AWS_ENDPOINT_URL", "minio:9000"), 2, "is no URL");
    // A corpus that can't be read is the stage's failure.
    project.write("pipeline.yaml", pipeline("", "s3://nowhere/*.md"));
    says(&mut on(&server, &project, &run), 1, "the bucket `nowhere`");
    project.write("pipeline.yaml", pipeline("", "s3://team"));
    says(&mut on(&server, &project, &run), 1, "`s3://team` matches no file");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?} for ten calls", started.elapsed());
}

#[test]
fn an_object_that_changes_while_it_is_read_fails_its_stage() {
    let (project, server) = (project(), Server::start("Store", &["team", "corpora"]));
    server.put("corpora", "docs/a.md", document(1));
    server.put("corpora", "docs/b.md", document(2));
    server.change_when_read("docs/b.md");
    project.write("pipeline.yaml", pipeline("", "s3://corpora/docs/*.md"));
    let output = output(&mut on(&server, &project, &["run", "pipeline.yaml", "--store", STORE]));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("`docs/b.md` changed while it was being read"), "{}", stderr(&output));
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_tables() {
    let (project, server) = (project(), Server::start("Store", &["team"]));
    ran(&server, &project, &[]);
    let (expected, total) = (digests(&server), server.count());
    let mut killed = 0;
    for fifth in 1..5 {
        server.empty();
        let words = ["run", "pipeline.yaml", "--store", STORE, SMALL[0], SMALL[1]];
        let mut child = on(&server, &project, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.count() < total * fifth / 5 && child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "the run stands still");
            std::thread::yield_now();
        }
        let _ = child.kill();
        killed += usize::from(!child.wait().expect("a status").success());
        ran(&server, &project, &[]);
        assert_eq!(digests(&server), expected, "killed at {fifth} fifths");
        assert_eq!(ran(&server, &project, &[]).executed(), Vec::<&str>::new());
    }
    assert!(killed >= 2, "only {killed} runs were still going when they were killed");
}

#[test]
fn a_put_whose_answer_is_lost_meets_itself() {
    let (project, server) = (project(), Server::start("Store", &["team"]));
    project.ran(&SMALL);
    server.lose_answers();
    ran(&server, &project, &[]);
    assert_eq!(digests(&server), project.digests(".ingrain", "cloud"));
    let conditional: Vec<String> =
        server.requests().into_iter().filter(|line| line.starts_with("PUT") && line.contains("/actions/")).collect();
    assert_eq!(conditional.len(), 2 * 7, "each action was put twice: {}", conditional.join("\n"));
    assert_eq!(server.objects().iter().filter(|(name, _)| name.contains("/actions/")).count(), 7);
}

#[test]
fn a_process_that_trains_reaches_the_store_as_the_file_says() {
    let (project, server) = (Project::new(), Server::start("Store", &["team"]));
    let rows = ["first", "other", "third", "tenth", "sixth", "fifth", "ninth", "final"];
    let rows: String = rows.iter().map(|word| format!("{{\"text\": \"The {word} row has thirty byte.\"}}\n")).collect();
    project.write("in/a.jsonl", rows);
    project.write(
        "pipeline.yaml",
        format!(
            "pipeline: weights\ns3:\n  team: {{ endpoint: \"{}\", key_id: \"${{secret:TEAM_ID}}\", key: \"${{secret:TEAM_KEY}}\" }}\n\
             stages:\n  documents: {{ op: read, path: in/a.jsonl }}\n  \
             bytes: {{ op: tokenizer, from: documents, vocabulary: 259 }}\n  \
             base: {{ op: checkpoint, from: bytes, preset: tiny }}\n  \
             mixture: {{ op: mix, from: {{ sources: documents, tokenizer: bytes }} }}\n  \
             student: {{ op: train, from: {{ mixture: mixture, base: base }}, epochs: 1, sequence: 64, heldout: 0 }}\n  \
             further: {{ op: train, from: {{ mixture: mixture, base: student }}, epochs: 1, sequence: 64, heldout: 0 }}\n",
            server.endpoint
        ),
    );
    let words = ["run", "pipeline.yaml", "--json", "--device", "cpu", "--store", STORE];
    let run = |options: &[&str]| {
        let words: Vec<&str> = words.iter().chain(options).copied().collect();
        let said = Said::of(&output(command(&project, &words).env("TEAM_ID", &server.key_id).env("TEAM_KEY", &server.key)));
        assert_eq!(said.code, 0, "{}\n{:?}", said.stderr, said.events);
        let asked = server.requests().into_iter();
        let weights: Vec<String> = asked.filter(|line| line.starts_with("GET") && line.contains(".safetensors")).collect();
        (said.executed().len(), weights)
    };
    let (executed, fetched) = run(&[]);
    assert_eq!(executed, 6);
    let distinct: std::collections::BTreeSet<&String> = fetched.iter().collect();
    assert!(!fetched.is_empty() && distinct.len() == fetched.len(), "each is fetched once: {fetched:?}");
    assert_eq!(run(&["--force", "further"]), (1, Vec::new()), "another process finds them in the cache");
    let kept = walk(&project.path(".cache/blobs"));
    assert!(kept.len() >= 2, "{kept:?}");
    let in_use = walk(&project.path(".cache/in-use"));
    assert!(in_use.is_empty(), "{in_use:?}");
}

#[test]
fn doctor_says_what_a_store_can_and_leaves_nothing() {
    let (project, server) = (project(), Server::start("Store", &["team"]));
    let words = ["doctor", "--store", STORE];
    let good = output(&mut on(&server, &project, &words));
    let table = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(good.status.success(), "{table}\n{}", stderr(&good));
    assert_eq!(table.lines().filter(|line| line.contains("  holds  ")).count(), 9, "{table}");
    assert!(server.objects().is_empty());

    server.ignore_conditions();
    let bad = output(&mut on(&server, &project, &words));
    let table = String::from_utf8_lossy(&bad.stdout).into_owned();
    assert_eq!(bad.status.code(), Some(1), "{table}");
    assert!(table.lines().any(|line| line.starts_with("put if absent") && line.contains("MISSING")), "{table}");
    assert!(table.lines().any(|line| line.starts_with("one winner of a race") && line.contains("MISSING")), "{table}");
    assert!(server.objects().is_empty());
    // And a run doesn't take the risk.
    let run = output(&mut on(&server, &project, &["run", "pipeline.yaml", "--store", STORE]));
    assert_eq!(run.status.code(), Some(2));
    assert!(stderr(&run).contains("If-None-Match"), "{}", stderr(&run));

    let absent = output(&mut on(&server, &project, &["doctor", "--store", "s3://nowhere"]));
    assert_eq!(absent.status.code(), Some(1));
    assert!(stderr(&absent).contains("doesn't exist"), "{}", stderr(&absent));
    let local = project.call(&["doctor", "pipeline.yaml"]);
    assert!(local.status.success(), "{}", stderr(&local));
    assert!(!project.path(".ingrain").exists());
    assert!(project.call(&["doctor"]).status.success());
}

#[test]
fn looking_at_a_local_store_makes_and_needs_nothing() {
    let project = project();
    for words in [["plan", "pipeline.yaml"].as_slice(), &["why", "pipeline.yaml", "long"]] {
        let looked = project.call(words);
        assert!(looked.status.success(), "{}", stderr(&looked));
    }
    let shown = project.call(&["show", "pipeline.yaml", "long"]);
    assert_eq!(shown.status.code(), Some(2));
    assert!(stderr(&shown).contains("there is no store at `./.ingrain`"), "{}", stderr(&shown));
    assert!(!project.path(".ingrain").exists());
    project.ran(&SMALL);
    let before = walk(&project.path(".ingrain"));
    assert!(String::from_utf8_lossy(&project.call(&["plan", "pipeline.yaml"]).stdout).contains("cached"));
    assert!(project.call(&["show", "pipeline.yaml", "long"]).status.success());
    assert_eq!(walk(&project.path(".ingrain")), before);
}
