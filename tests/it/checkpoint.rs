//! Checkpoints from a folder, a bucket and the hub: weights stay where they are, and what is wrong is said before a step is made.

use std::{collections::BTreeMap, path::Path, process::Command, sync::OnceLock};

use serde_json::{Value, json};

use crate::{
    cache::{document, walk},
    hub_server::Hub,
    project::{Project, Said},
    s3_server::Server,
};

type Files = BTreeMap<String, Vec<u8>>;

/// What `export` makes of a preset: a folder as `transformers` writes it.
fn model() -> &'static Files {
    static MODEL: OnceLock<Files> = OnceLock::new();
    MODEL.get_or_init(|| {
        let project = Project::new();
        project.write("docs/0.md", document(0));
        let stages = "  documents: { op: read, path: \"docs/*.md\" }\n  words: { op: tokenizer, from: documents, vocabulary: 300 }\n  \
                      base: { op: checkpoint, from: words, preset: tiny }\n";
        project.write("pipeline.yaml", format!("pipeline: preset\nseed: 3\nstages:\n{stages}"));
        project.ran(&[]);
        let exported = project.call(&["export", "pipeline.yaml", "base", "model"]);
        assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
        read(&project.path("model"))
    })
}

fn read(folder: &Path) -> Files {
    let name = |path: &String| Path::new(path).file_name().expect("a name").to_string_lossy().into_owned();
    walk(folder).into_iter().map(|path| (name(&path), std::fs::read(&path).expect("a file"))).collect()
}

/// The same model with its weights in two files.
fn sharded() -> Files {
    let mut files = model().clone();
    let whole = files.remove("model.safetensors").expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&whole).expect("weights");
    let (mut map, mut names) = (serde_json::Map::new(), tensors.names());
    names.sort_unstable();
    for (number, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", number + 1);
        let shard = names.iter().map(|name| (*name, tensors.tensor(name).expect("a tensor")));
        files.insert(file.clone(), safetensors::serialize(shard, None).expect("a shard"));
        map.extend(names.iter().map(|name| ((*name).to_owned(), Value::from(file.clone()))));
    }
    files.insert("model.safetensors.index.json".to_owned(), json!({ "weight_map": map }).to_string().into_bytes());
    files
}

fn pipeline(path: &str) -> String {
    format!(
        r#"pipeline: given
stages:
  documents: {{ op: read, path: "docs/*.md" }}
  base: {{ op: checkpoint, path: "{path}" }}
  units: {{ op: chunk, from: {{ documents: documents, tokenizer: base.tokenizer }}, max_tokens: 60 }}
  mixture: {{ op: mix, from: {{ sources: units, tokenizer: base.tokenizer }}, tokens: 1000 }}
  student: {{ op: train, from: {{ mixture: mixture, base: base }}, epochs: 1, batch: 2, sequence: 128, heldout: 0 }}
  exam: {{ op: read, path: exam.jsonl, format: multiple_choice }}
  before: {{ op: evaluate, from: {{ questions: exam, model: base }} }}
  after: {{ op: evaluate, from: {{ questions: exam, model: student }} }}
"#
    )
}

fn project(path: &str) -> Project {
    let project = Project::new();
    for n in 0..4 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    let question =
        r#"{"question": "Who keeps Harrow Lantern 0?", "options": ["Lotte Amsel", "Emil Rooke"], "answer": "Lotte Amsel"}"#;
    project.write("exam.jsonl", format!("{question}\n"));
    project.write("pipeline.yaml", pipeline(path));
    project
}

fn put(project: &Project, folder: &str, files: &Files) {
    for (name, content) in files {
        project.write(&format!("{folder}/{name}"), content);
    }
}

/// The files on the project's store that hold weights.
fn weights_on_store(project: &Project) -> Vec<String> {
    walk(&project.path(".ingrain")).into_iter().filter(|path| path.ends_with(".safetensors")).collect()
}

#[test]
fn a_folder_is_trained_from_and_stays_where_it_is() {
    let project = project("models/tiny");
    put(&project, "models/tiny", model());
    project.write("models/tiny/README.md", "not of the model");
    project.write("models/tiny/pytorch_model.bin", "nor this");
    let said = project.ran(&["--until", "units"]);
    assert_eq!(said.executed(), ["base", "documents", "units"]);
    assert_eq!(weights_on_store(&project), Vec::<String>::new());

    let said = project.ran(&[]);
    assert_eq!(said.executed(), ["after", "before", "exam", "mixture", "student"]);
    let (base, student) = (project.rows("base", &[]).remove(0), project.rows("student", &[]).remove(0));
    assert_eq!((&base["step"], &base["tokens"], &base["final"]), (&json!(0), &json!(0), &json!(true)));
    assert_eq!(student["parent_id"], base["row_id"]);
    // A model that was given is trained as a pre-trained one, though no step of it is known.
    let rates = project.rows("student.metrics", &[]);
    let highest = rates.iter().filter_map(|row| row["learning_rate"].as_f64()).fold(0.0, f64::max);
    assert!(highest > 0.0 && highest <= 1e-5, "{highest}");
    assert_eq!(project.ran(&["--verify"]).executed(), Vec::<&str>::new());
    let plan = String::from_utf8_lossy(&project.call(&["plan", "pipeline.yaml"]).stdout).into_owned();
    assert_eq!(plan.matches(" cached, ").count(), 8, "{plan}");

    let exported = project.call(&["export", "pipeline.yaml", "base", "out"]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    assert!(read(&project.path("out")) == *model(), "the folder leaves whole");
    let row = student["row_id"].as_str().expect("an id");
    let traced = project.call(&["trace", "pipeline.yaml", "student", row]);
    assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));

    // Neither another place nor what isn't of the model makes another model of it.
    std::fs::create_dir(project.path("elsewhere")).expect("made");
    std::fs::rename(project.path("models/tiny"), project.path("elsewhere/tiny")).expect("moved");
    project.write("pipeline.yaml", pipeline("elsewhere/tiny"));
    project.write("elsewhere/tiny/README.md", "changed");
    assert_eq!(project.ran(&[]).executed(), ["base"]);

    // Another file does.
    let mut config: Value = serde_json::from_slice(&model()["tokenizer_config.json"]).expect("JSON");
    config["padding_side"] = "left".into();
    project.write("elsewhere/tiny/tokenizer_config.json", config.to_string());
    let why = project.call(&["why", "pipeline.yaml", "base"]);
    assert!(String::from_utf8_lossy(&why.stdout).contains("files changed: `tokenizer_config.json`"), "{why:?}");
    assert_eq!(project.ran(&["--until", "student"]).executed(), ["base", "student"]);
    let forgotten = project.call(&["forget", "pipeline.yaml", "0.md"]);
    let forgotten = String::from_utf8_lossy(&forgotten.stdout).into_owned();
    assert!(forgotten.contains("student") && !forgotten.contains("tiny"), "{forgotten}");
    let kept = project.call(&["gc", "pipeline.yaml", "--keep", "1", "--grace", "0s"]);
    assert!(kept.status.success(), "{}", String::from_utf8_lossy(&kept.stderr));
    assert!(read(&project.path("elsewhere/tiny")).contains_key("model.safetensors"));
    assert_eq!(project.ran(&["--until", "student"]).executed(), Vec::<&str>::new());
}

#[test]
fn the_same_project_elsewhere_takes_its_own_weights() {
    let project = project("models/tiny");
    put(&project, "models/tiny", model());
    let store = project.path("shared").to_string_lossy().into_owned();
    project.ran(&["--store", &store]);
    let other = self::project("models/tiny");
    put(&other, "models/tiny", model());
    std::fs::remove_dir_all(project.path("models")).expect("removed");
    assert_eq!(other.ran(&["--store", &store]).executed(), Vec::<&str>::new());
    let exported = other.call(&["export", "pipeline.yaml", "base", "out", "--store", &store]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    assert!(read(&other.path("out")) == *model());
}

#[test]
fn what_is_wrong_with_a_folder_is_said_before_a_step() {
    let without = |name: &str| {
        let mut files = model().clone();
        files.remove(name).expect("a file");
        files
    };
    let with = |name: &str, content: &[u8]| {
        let mut files = model().clone();
        files.insert(name.to_owned(), content.to_vec());
        files
    };
    let weights = &model()["model.safetensors"];
    let mut half = sharded();
    half.remove("model-00002-of-00002.safetensors").expect("a shard");
    let mut pickled = without("model.safetensors");
    pickled.insert("pytorch_model.bin".to_owned(), b"pickled".to_vec());
    let gguf: Files = [("model.gguf".to_owned(), b"GGUF".to_vec())].into();
    let mut config: Value = serde_json::from_slice(&model()["config.json"]).expect("JSON");
    config["num_hidden_layers"] = 3.into();
    let project = project("models/tiny");
    for (files, said) in [
        (Files::new(), "`models/tiny` isn't there"),
        (without("config.json"), "has no `config.json`"),
        (without("tokenizer.json"), "has no `tokenizer.json`"),
        (pickled, "safetensors alone"),
        (gguf, "`model.safetensors.index.json`"),
        (half, "names `model-00002-of-00002.safetensors`, not there"),
        (with("model.safetensors.partial", b""), "is being written: `model.safetensors.partial` is there"),
        (with("model.safetensors", &weights[..weights.len() - 8]), "`models/tiny/model.safetensors`: the header describes"),
        (with("model.safetensors", b"1234"), "4 bytes are no weights"),
        (with("config.json", config.to_string().as_bytes()), "missing: `model.layers.2."),
        (with("config.json", b"{}"), "`config.json`"),
        (with("tokenizer.json", b"{}"), "tokenizer"),
    ] {
        let _ = std::fs::remove_dir_all(project.path("models"));
        put(&project, "models/tiny", &files);
        let run = project.run(&["--until", "base"]);
        assert_eq!(run.code, 1, "{said}: {}", run.stderr);
        assert!(run.stderr.contains(said), "`{said}` isn't in: {}", run.stderr);
    }
    std::fs::remove_dir_all(project.path("models")).expect("removed");
    put(&project, "models/tiny", &sharded());
    project.ran(&["--until", "before"]);
}

#[test]
fn a_bucket_is_trained_from() {
    let server = Server::start("Models", &["models"]);
    for (name, content) in sharded() {
        server.put("models", &format!("llama/tiny/{name}"), content);
    }
    server.put("models", "llama/tiny/onnx/model.onnx", "another layout");
    let project = project("s3://models/llama/tiny");
    let run = |words: &[&str]| {
        let words: Vec<&str> = ["run", "pipeline.yaml", "--json"].iter().chain(words).copied().collect();
        let mut command = project.command(&words);
        command.env("AWS_ENDPOINT_URL", &server.endpoint).env("AWS_REGION", "us-east-1").env("NO_PROXY", "*");
        command.env("AWS_ACCESS_KEY_ID", &server.key_id).env("AWS_SECRET_ACCESS_KEY", &server.key);
        let said = Said::of(&command.output().expect("the binary starts"));
        assert_eq!(said.code, 0, "{}", said.stderr);
        said
    };
    let cached = |project: &Project| -> u64 {
        let size = |path: &String| std::fs::metadata(path).map_or(0, |file| file.len());
        walk(&project.path(".cache")).iter().map(size).max().unwrap_or(0)
    };
    run(&["--until", "units"]);
    assert!(cached(&project) < 100_000, "who cuts by tokens fetches no weights");
    assert_eq!(run(&[]).executed().len(), 5);
    assert!(cached(&project) > 100_000);
    assert_eq!(run(&[]).executed(), Vec::<&str>::new());
    assert!(!weights_on_store(&project).iter().any(|path| path.contains("-of-00002")));

    let mut other = sharded();
    let shard = other.get_mut("model-00001-of-00002.safetensors").expect("a shard");
    let last = shard.len() - 2;
    shard[last] ^= 1;
    server.put("models", "llama/tiny/model-00001-of-00002.safetensors", shard.clone());
    assert_eq!(run(&["--until", "student"]).executed(), ["base", "student"]);
}

/// The binary with a hub in its environment, and a folder of its own for what comes from there.
fn on(hub: &Hub, project: &Project, words: &[&str]) -> Command {
    let mut command = project.command(words);
    for name in ["HF_HUB_CACHE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", &hub.token).env("HF_HOME", project.path("hf"));
    command
}

fn ran(hub: &Hub, project: &Project, options: &[&str]) -> Said {
    let words: Vec<&str> = ["run", "pipeline.yaml", "--json"].iter().chain(options).copied().collect();
    let said = Said::of(&on(hub, project, &words).output().expect("the binary starts"));
    assert_eq!(said.code, 0, "{}", said.stderr);
    said
}

#[test]
fn the_hub_is_trained_from_and_asked_for_no_more_than_is_needed() {
    let hub = Hub::start();
    let commit = hub.commit("acme/tiny", &sharded());
    let project = project(&format!("hf://acme/tiny@{commit}"));
    ran(&hub, &project, &["--until", "units"]);
    let asked = hub.requests();
    let of_weights = |asked: &[String]| asked.iter().filter(|line| line.contains(".safetensors ")).cloned().collect::<Vec<_>>();
    for line in of_weights(&asked) {
        assert!(line.ends_with("bytes=0-65535"), "only the header of weights is looked at: {line}");
    }
    assert!(!walk(&project.path("hf")).iter().any(|path| path.ends_with(".safetensors")));

    // A download that breaks off is taken up again.
    hub.cut(2);
    assert_eq!(ran(&hub, &project, &[]).executed(), ["after", "before", "exam", "mixture", "student"]);
    assert_eq!(weights_on_store(&project).len(), 1, "the student's");
    let snapshot = project.path("hf/hub/models--acme--tiny/snapshots").join(&commit);
    assert!(read(&snapshot).keys().filter(|name| name.ends_with(".safetensors")).count() == 2);

    // What a commit holds never changes: nobody is asked again, by name or by its first digits.
    hub.requests();
    assert_eq!(ran(&hub, &project, &[]).executed(), Vec::<&str>::new());
    assert_eq!(hub.requests(), Vec::<String>::new());
    project.write("pipeline.yaml", pipeline(&format!("hf://acme/tiny@{}", &commit[..7])));
    assert_eq!(ran(&hub, &project, &[]).executed(), Vec::<&str>::new());
    assert_eq!(hub.requests().len(), 1);

    // A branch that moves on makes another model, and `why` says what of it.
    project.write("pipeline.yaml", pipeline("hf://acme/tiny@main"));
    assert_eq!(ran(&hub, &project, &[]).executed(), Vec::<&str>::new());
    let mut other = sharded();
    let shard = other.get_mut("model-00002-of-00002.safetensors").expect("a shard");
    let last = shard.len() - 2;
    shard[last] ^= 1;
    hub.commit("acme/tiny", &other);
    let why = on(&hub, &project, &["why", "pipeline.yaml", "base"]).output().expect("the binary starts");
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(why.contains("files changed: `model-00002-of-00002.safetensors`\n"), "{why}");
    let said = ran(&hub, &project, &["--until", "student"]);
    assert_eq!(said.executed(), ["base", "student"]);
    let exported = on(&hub, &project, &["export", "pipeline.yaml", "base", "out"]).output().expect("the binary starts");
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    assert!(read(&project.path("out")) == other);

    for path in walk(&project.path("")) {
        let content = std::fs::read(&path).expect("a file");
        let found = content.windows(hub.token.len()).any(|window| window == hub.token.as_bytes());
        assert!(!found, "the token is in {path}");
    }
    assert!(!said.stderr.contains(&hub.token) && !said.events.iter().any(|event| event.to_string().contains(&hub.token)));
}

#[test]
fn documents_are_read_from_the_hub() {
    let hub = Hub::start();
    let files: Files = (0..4).map(|n| (format!("text/{n}.md"), document(n).into_bytes())).collect();
    let commit = hub.commit("datasets/acme/docs", &files);
    let project = project("unused");
    let pipeline = |path: &str| format!("pipeline: read\nstages:\n  documents: {{ op: read, path: \"{path}\" }}\n");
    project.write("pipeline.yaml", pipeline("docs/*.md"));
    let local = project.ran(&[]).report("documents")["rows"].clone();
    project.write("pipeline.yaml", pipeline("hf://datasets/acme/docs@main/text/[0-2].md"));
    assert_eq!(ran(&hub, &project, &[]).report("documents")["rows"], 3);
    project.write("pipeline.yaml", pipeline(&format!("hf://datasets/acme/docs@{commit}/**/*.md")));
    assert_eq!(ran(&hub, &project, &[]).report("documents")["rows"], local);
    hub.requests();
    assert_eq!(ran(&hub, &project, &[]).executed(), Vec::<&str>::new());
    assert_eq!(hub.requests(), Vec::<String>::new());
}

#[test]
fn what_is_wrong_with_the_hub_is_said() {
    let hub = Hub::start();
    let commit = hub.commit("acme/tiny", model());
    hub.commit("acme/gated", model());
    hub.gate("acme/gated");
    hub.commit("acme/broken", model());
    hub.break_files("acme/broken", true);
    let project = project("hf://acme/tiny@main");
    let said = |path: &str, until: &str, change: &dyn Fn(&mut Command)| {
        project.write("pipeline.yaml", pipeline(path));
        let mut command = on(&hub, &project, &["run", "pipeline.yaml", "--until", until]);
        change(&mut command);
        let output = command.output().expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(!stderr.contains(&hub.token), "{stderr}");
        // A terminal's lines are as long as they are.
        stderr.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let as_it_is = |_: &mut Command| {};
    let without_token = |command: &mut Command| {
        command.env_remove("HF_TOKEN");
    };
    let without_network = |command: &mut Command| {
        command.env("HF_ENDPOINT", "http://127.0.0.1:9");
    };
    type Change<'a> = &'a dyn Fn(&mut Command);
    let cases: [(&str, Change<'_>, &[&str]); 7] = [
        ("hf://acme/tiny", &as_it_is, &["names no revision", &format!("hf://acme/tiny@{commit}")]),
        ("hf://acme/tiny@v2", &as_it_is, &["`hf://acme/tiny` has no revision `v2`", &commit]),
        ("hf://acme/tiny@0e9e39f", &as_it_is, &["has no revision `0e9e39f`", "all 40 digits"]),
        ("hf://acme/none@main", &as_it_is, &["there is no `acme/none`", "look at the name"]),
        ("hf://acme/tiny@main", &without_token, &["there is no `acme/tiny`", "set `HF_TOKEN`"]),
        ("hf://acme/gated@main", &as_it_is, &["`acme/gated` is gated", "ask for access at", "/acme/gated"]),
        ("hf://acme/tiny@main", &without_network, &["http://127.0.0.1:9 can't be reached", "`HF_ENDPOINT`"]),
    ];
    for (path, change, expected) in cases {
        let stderr = said(path, "base", change);
        for part in expected {
            assert!(stderr.contains(part), "{path}: `{part}` isn't in: {stderr}");
        }
    }

    let stderr = said("hf://acme/broken@main", "before", &as_it_is);
    assert!(stderr.contains("didn't come as the hub lists it"), "{stderr}");
    hub.break_files("acme/broken", false);
    ran(&hub, &project, &["--until", "before"]);
}
