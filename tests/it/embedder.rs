//! An embedder over HTTP: what is sent, and how often.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::{cache::walk, project::Project};

/// A server that gives a text about `unit-07` a 1 at place 7 of eight, and keeps what it was sent.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                std::thread::spawn(move || serve(stream, &log));
            }
        });
        Self { address, asked }
    }

    /// How many texts each request had.
    fn requests(&self) -> Vec<usize> {
        self.asked.lock().expect("not poisoned").iter().map(Vec::len).collect()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Vec<String>>>) {
    let mut writer = stream.try_clone().expect("a second handle");
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !matches!(reader.read_line(&mut head), Ok(n) if n > 0) {
                return;
            }
        }
        assert!(head.starts_with("POST /v1/embeddings "), "{head}");
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or_default()];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let texts: Vec<String> = serde_json::from_value(body["input"].clone()).expect("texts");
        let vector = |(index, text): (usize, &String)| {
            let unit: usize = text.split("unit-").nth(1).and_then(|rest| rest[..2].parse().ok()).expect("a unit");
            json!({ "index": index, "embedding": (0..8).map(|place| u8::from(place == unit % 8)).collect::<Vec<_>>() })
        };
        let data: Vec<Value> = texts.iter().enumerate().map(vector).collect();
        let tokens = 10 * texts.len();
        log.lock().expect("not poisoned").push(texts);
        let said =
            json!({ "model": "e", "data": data, "usage": { "prompt_tokens": tokens, "total_tokens": tokens } }).to_string();
        let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n", said.len());
        if writer.write_all(head.as_bytes()).is_err() || writer.write_all(said.as_bytes()).is_err() {
            return;
        }
    }
}

fn document(project: &Project, unit: usize) {
    project.write(&format!("docs/{unit:02}.md"), format!("The text of unit-{unit:02} says little."));
}

#[test]
fn a_plan_counts_vectors_and_a_run_pays_for_each_once() {
    let (server, project) = (Server::start(), Project::new());
    (0..8).for_each(|unit| document(&project, unit));
    let pipeline = format!(
        "pipeline: varied\nmodels:\n  vectors:\n    openai: {{ base_url: \"http://{}/v1\", model: e }}\n    price: {{ input: 10, output: 0 }}\n\
         stages:\n  documents: {{ op: read, path: \"docs/*.md\" }}\n  \
         variety: {{ op: diversity, from: documents, embedder: vectors }}\n",
        server.address
    );
    project.write("pipeline.yaml", pipeline);
    project.ran(&["--until", "documents"]);
    let before = walk(&project.path(".ingrain"));
    let planned = project.call(&["plan", "pipeline.yaml", "--json"]);
    assert!(planned.status.success(), "{}", String::from_utf8_lossy(&planned.stderr));
    let lines = String::from_utf8_lossy(&planned.stdout).into_owned();
    let stages: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let asks = &stages.iter().find(|stage| stage["stage"] == "variety").expect("the stage")["asks"];
    assert_eq!((&asks["calls"], &asks["memo_hits"], &asks["output_tokens"]), (&json!(1), &json!(0), &json!(0)), "{asks}");
    assert_eq!((server.requests(), walk(&project.path(".ingrain"))), (vec![], before), "nothing is sent or written");

    let first = project.ran(&[]);
    let report = first.report("variety");
    assert_eq!((&report["calls"], &report["input_tokens"]), (&json!(1), &json!(80)), "{report}");
    let score = |n: usize| {
        let rows = project.rows("variety", &["--where", "metric = 'vendi'"]);
        assert_eq!((rows.len(), &rows[0]["n"]), (1, &json!(n)), "{rows:?}");
        rows[0]["value"].clone()
    };
    assert_eq!(score(8), json!(8.0));
    document(&project, 8);
    let second = project.ran(&[]);
    let report = second.report("variety");
    assert_eq!((&report["calls"], &report["memo_hits"]), (&json!(1), &json!(8)), "{report}");
    // Two of nine are equal: 9 to the ninth power, over 2 squared, of which the ninth root.
    assert_eq!(score(9), json!(7.715196));
    assert_eq!(server.requests(), [8, 1]);
    project.ran(&["--force", "variety"]);
    assert_eq!(server.requests(), [8, 1], "all of it is remembered");
}
