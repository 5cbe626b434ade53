//! A teacher over HTTP that misbehaves on order: what becomes of the rows, and how often it is asked.

mod counts;
mod ends;
mod forgotten;
mod race;
mod unpaid;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Output,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::util::display::array_value_to_string;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::{cache::walk, project::Project};

const KEY: &str = "sk-live-4f9c1b7e02";

enum Reply {
    /// Status, further header lines, body.
    Http(u16, &'static str, String),
    /// The beginning of an answer, and the end of the connection.
    Cut,
    /// Nothing.
    Hang,
}

/// A request as it came.
struct Asked {
    head: String,
    /// The unit that it is about: `unit-07`.
    unit: String,
}

/// What the server does with a request about a unit that was asked about so often before.
type Script = Arc<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Requests that came and have no reply yet.
    waiting: Arc<AtomicUsize>,
}

impl Server {
    fn start(script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let waiting: Arc<AtomicUsize> = Arc::default();
        let (script, log, open): (Script, _, _) = (Arc::new(script), Arc::clone(&asked), Arc::clone(&waiting));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, log, open) = (Arc::clone(&script), Arc::clone(&log), Arc::clone(&open));
                std::thread::spawn(move || serve(stream, &script, &log, &open));
            }
        });
        Self { address, asked, waiting }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.asked.lock().expect("not poisoned").len()
    }

    /// How often each unit was asked about.
    fn by_unit(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for asked in self.asked.lock().expect("not poisoned").iter() {
            *counts.entry(asked.unit.clone()).or_default() += 1;
        }
        counts
    }
}

/// The next request on a connection: its head and its body.
pub(crate) fn received(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if !matches!(reader.read_line(&mut head), Ok(n) if n > 0) {
            return None;
        }
    }
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn serve(stream: TcpStream, script: &Script, log: &Mutex<Vec<Asked>>, waiting: &AtomicUsize) {
    let mut writer = stream.try_clone().expect("a second handle");
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = received(&mut reader) {
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let prompt = body["messages"][0]["content"].as_str().expect("a prompt");
        let unit = prompt.find("unit-").map_or("", |at| &prompt[at..at + 7]).to_owned();
        let asked = Asked { head, unit };
        let before = log.lock().expect("not poisoned").iter().filter(|other| other.unit == asked.unit).count();
        waiting.fetch_add(1, Ordering::SeqCst);
        let reply = script(&asked, before);
        log.lock().expect("not poisoned").push(asked);
        if !matches!(reply, Reply::Hang) {
            waiting.fetch_sub(1, Ordering::SeqCst);
        }
        let (head, body) = match reply {
            Reply::Http(status, headers, body) => {
                (format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len()), body)
            }
            Reply::Cut => ("HTTP/1.1 200 X\r\ncontent-length: 9999\r\n\r\n".to_owned(), "{\"choices\": [{".to_owned()),
            Reply::Hang => loop {
                std::thread::park();
            },
        };
        let cut = head.contains("content-length: 9999\r\n");
        if writer.write_all(head.as_bytes()).is_err() || writer.write_all(body.as_bytes()).is_err() || cut {
            return;
        }
    }
}

/// A chat completion.
fn said(text: &str, finish: &str) -> Reply {
    let message = json!({ "role": "assistant", "content": text });
    let body = json!({
        "model": "m", "choices": [{ "index": 0, "message": message, "finish_reason": finish }],
        "usage": { "prompt_tokens": 100, "completion_tokens": 20 },
    });
    Reply::Http(200, "", body.to_string())
}

/// A pair about a unit, as a teacher that does what it is told gives it.
fn pair(unit: &str) -> String {
    json!({ "pairs": [{ "question": format!("What is {unit}?"), "explanation": "", "answer": format!("{unit} itself") }] })
        .to_string()
}

fn error(status: u16, message: &str) -> Reply {
    Reply::Http(status, "", json!({ "error": { "message": message } }).to_string())
}

/// A project with documents about `units`, and a pipeline that asks the server about them.
fn project(server: &str, units: usize, model: &str) -> Project {
    let project = Project::new();
    for n in 0..units {
        project.write(&format!("docs/{n:02}.md"), format!("The text of unit-{n:02} says little."));
    }
    project.write(
        "pipeline.yaml",
        format!(
            "pipeline: taught\nmodels:\n  teacher:\n    openai: {{ base_url: \"{server}\", model: m, api_key: \"${{secret:TEACHER_KEY}}\"{model} }}\n\
             stages:\n  documents: {{ op: read, path: \"docs/*.md\" }}\n  \
             qa: {{ op: synthesize_qa, from: documents, teacher: teacher, pairs: 1, min_yield: 0.3 }}\n"
        ),
    );
    project
}

fn run(project: &Project, options: &[&str], key: &str) -> Output {
    let words: Vec<&str> = ["run", "pipeline.yaml", "--json"].iter().chain(options).copied().collect();
    let mut command = project.command(&words);
    command.env("TEACHER_KEY", key).env("NO_PROXY", "127.0.0.1").env("INGRAIN_LOG", "debug");
    command.output().expect("the binary starts")
}

#[track_caller]
fn ran(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

fn url(server: &Server) -> String {
    format!("http://{}/v1", server.address)
}

/// Rejects of `qa`: reason by unit.
fn reasons(project: &Project) -> BTreeMap<String, String> {
    let documents: BTreeMap<String, String> = project
        .rows("documents", &[])
        .iter()
        .map(|row| {
            let text = row["text"].as_str().expect("a text");
            let at = text.find("unit-").expect("a unit");
            (row["row_id"].as_str().expect("an id").to_owned(), text[at..at + 7].to_owned())
        })
        .collect();
    let rejects = project.rows("qa.rejects", &[]);
    rejects
        .iter()
        .map(|row| {
            let unit = documents[row["parent_id"].as_str().expect("a parent")].clone();
            (unit, format!("{}, {} attempts", row["reason"].as_str().expect("a reason"), row["attempts"]))
        })
        .collect()
}

/// All that a file says: its bytes, and its rows if it is Parquet.
pub(crate) fn content(path: &Path) -> Vec<u8> {
    let mut content = std::fs::read(path).expect("a file");
    if path.extension().is_some_and(|extension| extension == "parquet") {
        let file = std::fs::File::open(path).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build()).expect("Parquet");
        for batch in reader {
            for column in batch.expect("rows").columns() {
                for row in 0..column.len() {
                    content.extend(array_value_to_string(column, row).expect("a text").into_bytes());
                }
            }
        }
    }
    content
}

#[track_caller]
fn assert_unseen(project: &Project, outputs: &[&Output]) {
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let mut references = 0;
    for file in walk(&project.path(".")) {
        let content = content(Path::new(&file));
        assert!(!holds(&content, KEY), "the key stands in {file}");
        references += usize::from(file.contains("/memo/") && holds(&content, "Bearer ${secret:TEACHER_KEY}"));
    }
    assert!(references > 0, "what was said is read, the server's echo of the key included");
    for output in outputs {
        assert!(!holds(&output.stdout, KEY) && !holds(&output.stderr, KEY), "the key was printed");
    }
}

#[test]
fn every_kind_of_misbehaviour_ends_as_it_should() {
    let server = Server::start(|asked, before| {
        let (unit, first) = (asked.unit.as_str(), before == 0);
        match unit {
            "unit-01" if first => Reply::Http(429, "retry-after-ms: 100\r\n", String::new()),
            "unit-02" if first => error(500, "out of memory"),
            "unit-03" if first => Reply::Cut,
            "unit-04" if first => Reply::Http(200, "", "{\"choices\": [{\"message\"".to_owned()),
            "unit-05" if first => Reply::Http(200, "content-type: text/html\r\n", "<html><title>502</title></html>".to_owned()),
            "unit-06" => said("{\"facts\": [\"unit-06\"]}", "stop"),
            "unit-07" => Reply::Http(200, "", json!({ "choices": [{ "message": { "refusal": "I won't." } }] }).to_string()),
            "unit-08" => said(&pair(unit)[..40], "length"),
            "unit-09" => error(400, "unit-09 is more than I take"),
            "unit-10" => said(&format!("{}{}", " ".repeat(10 << 20), pair(unit)), "stop"),
            "unit-11" => said(&format!("Sure!\n```json\n[{}, {{\"question\": \"Wh", pair(unit)), "stop"),
            "unit-12" if first => Reply::Hang,
            "unit-13" => said(&format!("<think>The key is {}.</think>{}", asked.head, pair(unit)), "stop"),
            "unit-14" => said(&pair(&asked.head.lines().collect::<Vec<_>>().join(" ")), "stop"),
            _ => said(&pair(unit), "stop"),
        }
    });
    let project = project(&url(&server), 17, ", timeout: 3, context: 3Ki");
    project.write("docs/16.md", format!("The text of unit-16 is long.{}", " It goes on.".repeat(1000)));

    let first = run(&project, &[], KEY);
    ran(&first);
    let counts = server.by_unit();
    let twice = ["unit-01", "unit-02", "unit-03", "unit-04", "unit-05", "unit-12"];
    for n in 0..16 {
        let unit = format!("unit-{n:02}");
        let expected = match unit.as_str() {
            again if twice.contains(&again) => 2,
            "unit-06" | "unit-07" | "unit-08" => 3,
            _ => 1,
        };
        assert_eq!(counts.get(&unit), Some(&expected), "requests about {unit}");
    }
    assert_eq!(counts.get("unit-16"), None, "what doesn't fit isn't sent");
    let expected = [
        ("unit-06", "unparsable, 3 attempts"),
        ("unit-07", "refusal, 3 attempts"),
        ("unit-08", "length, 3 attempts"),
        ("unit-09", "invalid_request, 1 attempts"),
        ("unit-11", "incomplete, 1 attempts"),
        ("unit-16", "too_long, 0 attempts"),
    ];
    let expected: BTreeMap<String, String> = expected.map(|(unit, end)| (unit.to_owned(), end.to_owned())).into();
    assert_eq!(reasons(&project), expected);
    let rejects = project.rows("qa.rejects", &[]);
    let wrong = rejects.iter().find(|row| row["reason"] == "invalid_request").expect("a row");
    assert_eq!(wrong["detail"], "the server refused the request: HTTP 400: unit-09 is more than I take");
    let rows = project.rows("qa", &[]);
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().any(|row| row["question"].as_str().is_some_and(|text| text.contains("Bearer ${secret:TEACHER_KEY}"))));

    let asked = server.requests();
    let digests = project.digests(".ingrain", "taught");
    let (second, forced) = (run(&project, &[], KEY), run(&project, &["--force", "qa"], ""));
    ran(&second);
    ran(&forced);
    assert_eq!(server.requests(), asked, "nothing is asked twice, answers that were refused included");
    assert_eq!(project.digests(".ingrain", "taught"), digests);
    assert_unseen(&project, &[&first, &second, &forced]);
}

#[test]
fn a_wrong_key_fails_after_one_request_and_the_right_one_goes_on() {
    let server = Server::start(|asked, _| match asked.head.contains(KEY) {
        true => said(&pair(&asked.unit), "stop"),
        false => error(401, &format!("Incorrect API key provided: {}", asked.head)),
    });
    let project = project(&url(&server), 40, "");
    let output = run(&project, &[], "sk-wrong-key-123456");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(server.requests(), 1);
    for part in ["lets nobody in with this key: HTTP 401", "see that `TEACHER_KEY` holds a key", "every answer so far is kept"] {
        assert!(stderr.contains(part), "`{part}` isn't in:\n{stderr}");
    }
    assert!(!stderr.contains("sk-wrong-key-123456"), "{stderr}");
    let events = walk(&project.path(".ingrain/lineage"));
    assert!(String::from_utf8_lossy(&content(Path::new(&events[0]))).contains("lets nobody in with this key"), "{events:?}");
    for file in walk(&project.path(".ingrain")) {
        assert!(!String::from_utf8_lossy(&content(Path::new(&file))).contains("sk-wrong-key-123456"), "{file}");
    }
    ran(&run(&project, &[], KEY));
    assert_eq!((server.requests(), project.rows("qa", &[]).len()), (41, 40));
}

#[test]
fn a_key_that_is_not_set_is_named_and_a_cached_run_needs_none() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = project(&url(&server), 2, "");
    let output = project.command(&["run", "pipeline.yaml"]).env_remove("TEACHER_KEY").output().expect("starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("needs the environment variable `TEACHER_KEY`"), "{stderr}");
    assert_eq!(server.requests(), 0);
    ran(&run(&project, &[], KEY));
    let cached = project.command(&["run", "pipeline.yaml"]).env_remove("TEACHER_KEY").output().expect("starts");
    ran(&cached);
    assert_eq!(server.requests(), 2);
}

#[test]
fn an_outage_commits_nothing_and_keeps_every_answer() {
    let open = Arc::new(Mutex::new(30));
    let left = Arc::clone(&open);
    let server = Server::start(move |asked, _| {
        let mut left = left.lock().expect("not poisoned");
        match *left {
            0 => error(402, "no credit left"),
            _ => {
                *left -= 1;
                said(&pair(&asked.unit), "stop")
            }
        }
    });
    let project = project(&url(&server), 60, "");
    // One after the other: of several in flight, an outage gives those up that it didn't come to.
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace("stages:\n", "    max_in_flight: 1\nstages:\n"));
    let output = run(&project, &[], KEY);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("asks for payment: HTTP 402: no credit left"));
    assert!(!project.call(&["show", "pipeline.yaml", "qa"]).status.success(), "nothing was committed");
    *open.lock().expect("not poisoned") = 1000;
    let before = server.requests();
    ran(&run(&project, &[], KEY));
    assert_eq!(server.requests() - before, 30, "only what had no answer is asked for");
    assert_eq!(project.rows("qa", &[]).len(), 60);
}

#[test]
fn a_server_that_refuses_every_request_is_an_outage() {
    let server = Server::start(|_, _| error(400, "top_k is not a number"));
    let project = project(&url(&server), 60, "");
    let output = run(&project, &[], KEY);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("refused the first 20 requests") && stderr.contains("HTTP 400: top_k is not a number"), "{stderr}");
}

#[test]
fn proxies_of_the_environment_are_used() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = project("http://teacher.invalid/v1", 1, "");
    let mut command = project.command(&["run", "pipeline.yaml"]);
    command.env("TEACHER_KEY", KEY).env_remove("NO_PROXY").env_remove("no_proxy");
    ran(&command.env("HTTP_PROXY", format!("http://{}", server.address)).output().expect("starts"));
    let asked = server.asked.lock().expect("not poisoned");
    assert!(asked[0].head.starts_with("POST http://teacher.invalid/v1/chat/completions"), "{}", asked[0].head);
}

#[test]
fn a_killed_run_asks_nothing_again_that_was_answered() {
    let answered = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
    let (replied, open) = (Arc::clone(&answered), Arc::new(Mutex::new(20)));
    let left = Arc::clone(&open);
    let server = Server::start(move |asked, _| {
        let mut left = left.lock().expect("not poisoned");
        if *left == 0 {
            return Reply::Hang;
        }
        *left -= 1;
        replied.lock().expect("not poisoned").insert(asked.unit.clone());
        said(&pair(&asked.unit), "stop")
    });
    let project = project(&url(&server), 60, "");
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace("stages:\n", "    max_in_flight: 4\nstages:\n"));
    let mut child = project
        .command(&["run", "pipeline.yaml", "--json"])
        .env("TEACHER_KEY", KEY)
        .env("NO_PROXY", "127.0.0.1")
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    // Twenty answers are out and four requests hang: nothing more comes.
    while server.requests() < 24 {
        std::thread::yield_now();
    }
    child.kill().expect("killed");
    child.wait().expect("a status");
    *open.lock().expect("not poisoned") = 1000;
    let before = answered.lock().expect("not poisoned").clone();
    ran(&run(&project, &[], KEY));
    assert_eq!(project.rows("qa", &[]).len(), 60);
    let counts = server.by_unit();
    let again: Vec<&String> = before.iter().filter(|unit| counts[*unit] > 1).collect();
    // An answer on its way when the process died counts as in flight.
    assert!(again.len() <= 4, "{again:?} were answered and asked for again");
    assert!(server.requests() <= 60 + 4 + again.len(), "{} requests", server.requests());
}

#[test]
fn a_budget_is_never_passed_and_what_is_left_is_asked_when_it_is_raised() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = project(&url(&server), 60, "");
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    // 100 and 20 tokens a call: 0.3 cents. The worst that one may cost is a token a byte and 25 tokens.
    let priced = pipeline
        .replace("stages:\n", "    price: { input: 10, output: 100 }\nbudget: { usd: 0.09 }\nstages:\n")
        .replace("pairs: 1,", "pairs: 1, max_output_tokens: 25,");
    project.write("pipeline.yaml", &priced);
    let stopped = run(&project, &[], KEY);
    assert_eq!(stopped.status.code(), Some(3), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("the budget of $0.0900 is spent"));
    let paid = server.requests();
    assert!(paid > 5 && paid as f64 * 0.003 <= 0.09, "{paid} calls");
    assert_eq!(run(&project, &[], KEY).status.code(), Some(3), "another run has no more to spend");
    let still = server.requests();
    assert!(still as f64 * 0.003 <= 0.09, "{still} calls");
    ran(&run(&project, &["--budget", "1.00"], KEY));
    assert_eq!(server.requests(), 60, "nothing is paid for twice");
    assert_eq!(project.rows("qa", &[]).len(), 60);
    project.write("pipeline.yaml", priced.replace("    price: { input: 10, output: 100 }\n", ""));
    let unpriced = run(&project, &[], KEY);
    assert_eq!(unpriced.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unpriced.stderr).contains("nothing says what `teacher` costs"));
}

#[test]
fn a_sample_projects_what_the_whole_run_then_takes() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = project(&url(&server), 60, "");
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace("stages:\n", "    price: { input: 10, output: 100 }\nstages:\n"));
    let sampled = run(&project, &["--sample", "5"], KEY);
    ran(&sampled);
    assert_eq!(server.requests(), 5);
    let events = String::from_utf8_lossy(&sampled.stdout).into_owned();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>();
    let projection = events.iter().find(|event| event["event"] == "projection").expect("a projection");
    assert_eq!((&projection["stage"], &projection["documents"], &projection["sampled"]), (&json!("qa"), &json!(60), &json!(5)));
    for (quantity, value) in [("requests", 60.0), ("input_tokens", 6000.0), ("output_tokens", 1200.0), ("usd", 0.18)] {
        let projected = projection[quantity]["value"].as_f64().expect("a number");
        assert!((projected / value - 1.0).abs() < 0.02, "{quantity}: {projected} and not {value}");
    }
    assert!(
        events.iter().any(|event| event["event"] == "sample" && event["rows"].as_array().is_some_and(|rows| !rows.is_empty()))
    );
    // A second look at the same sample is free, and the whole run goes on from it.
    ran(&run(&project, &["--sample", "5"], KEY));
    assert_eq!(server.requests(), 5);
    ran(&run(&project, &[], KEY));
    assert_eq!(server.requests(), 60);
}

#[test]
fn a_plan_says_what_a_run_would_ask_and_writes_nothing() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = project(&url(&server), 12, "");
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace("stages:\n", "    price: { input: 10, output: 100 }\nstages:\n"));
    project.call(&["run", "pipeline.yaml", "--until", "documents"]);
    let planned = || -> Value {
        let before = walk(&project.path(".ingrain"));
        let output = project.call(&["plan", "pipeline.yaml", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(walk(&project.path(".ingrain")), before, "looking writes nothing");
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let stages: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        stages.into_iter().find(|stage| stage["stage"] == "qa").expect("the stage")
    };
    let first = planned();
    assert_eq!((&first["asks"]["calls"], &first["asks"]["memo_hits"]), (&json!(12), &json!(0)), "{first}");
    assert_eq!((&first["asks"]["output_tokens"], &first["asks"]["output_tokens_at_most"]), (&json!(12 * 2048), &json!(true)));
    assert_eq!(server.requests(), 0);
    ran(&run(&project, &[], KEY));
    project.write("docs/new.md", "The text of unit-77 says little.");
    let stage = planned();
    assert_eq!(stage["status"], "unknown", "its documents haven't been read");
    project.call(&["run", "pipeline.yaml", "--until", "documents"]);
    let second = planned();
    assert_eq!((&second["asks"]["calls"], &second["asks"]["memo_hits"]), (&json!(1), &json!(12)), "{second}");
    assert_eq!((&second["asks"]["output_tokens"], &second["asks"]["output_tokens_at_most"]), (&json!(20), &json!(false)));
    let text = project.call(&["plan", "pipeline.yaml"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("1 call, 12 answers in the memo, about ") && text.contains("20 to receive, $"), "{text}");
    ran(&run(&project, &[], KEY));
    assert_eq!(server.requests(), 13);
}

#[test]
fn prompts_are_shown_and_not_sent() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = project(&url(&server), 12, "");
    project.call(&["run", "pipeline.yaml", "--until", "documents"]);
    let shown = project.call(&["show", "pipeline.yaml", "qa", "--prompts", "--limit", "3", "--json"]);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let requests: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(requests.len(), 3);
    assert!(requests[0]["messages"][0]["content"].as_str().is_some_and(|content| content.contains("The text of unit-")));
    assert_eq!(server.requests(), 0);
    let all = project.call(&["show", "pipeline.yaml", "qa", "--prompts", "--limit", "100"]);
    assert_eq!(String::from_utf8_lossy(&all.stdout).matches("\n[user]\n").count(), 12);
    let none = project.call(&["show", "pipeline.yaml", "documents", "--prompts"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("`documents` asks no teacher"));
}
