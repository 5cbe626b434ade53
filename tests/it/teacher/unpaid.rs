//! What isn't asked, or not any more: nothing to ask about, answers that are of no use, no money, nobody there.

use std::{collections::BTreeMap, net::TcpListener, process::Output};

use super::{KEY, Server, pair, project, ran, run, said, url};
use crate::project::Project;

/// A project with these stages, as YAML.
fn with_stages(server: &Server, stages: &str) -> Project {
    let project = Project::new();
    let model = format!("{{ base_url: \"{}\", model: m, api_key: \"${{secret:TEACHER_KEY}}\" }}", url(server));
    project.write("pipeline.yaml", format!("pipeline: taught\nmodels:\n  teacher:\n    openai: {model}\nstages:\n{stages}"));
    project
}

/// The project with a price for its model and a budget.
fn with_budget(project: Project, usd: &str) -> Project {
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    let money = format!("    price: {{ input: 10, output: 100 }}\nbudget: {{ usd: {usd} }}\nstages:\n");
    project.write("pipeline.yaml", pipeline.replace("stages:\n", &money));
    project
}

#[track_caller]
fn failed(output: &Output, code: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "`{part}` isn't in:\n{stderr}");
    }
}

#[test]
fn rows_without_text_are_rejected_and_not_sent() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = with_stages(
        &server,
        r#"
  documents:
    op: sql
    query: >
      select lpad('1', 32, '0') as row_id, 'a' as doc_id, 'The text of unit-01 says little.' as text
      union all select lpad('2', 32, '0'), 'b', ' '
      union all select lpad('3', 32, '0'), 'c', null
  questions:
    op: sql
    query: >
      select lpad('a', 32, '0') as row_id, lpad('1', 32, '0') as parent_id, 'What is unit-01?' as question
      union all select lpad('b', 32, '0'), lpad('2', 32, '0'), 'What is unit-02?'
      union all select lpad('c', 32, '0'), lpad('3', 32, '0'), 'What is unit-03?'
  qa: { op: synthesize_qa, from: documents, teacher: teacher, draws: 2, min_yield: 0.3 }
  rewrites: { op: rewrite, from: { documents: documents, questions: questions }, teacher: teacher, min_yield: 0.3 }
"#,
    );
    ran(&run(&project, &[], KEY));
    let expected: BTreeMap<String, usize> = [("unit-01".to_owned(), 3)].into();
    assert_eq!(server.by_unit(), expected, "two draws and a rewrite");
    for stage in ["qa", "rewrites"] {
        let rejects = project.rows(&format!("{stage}.rejects"), &[]);
        assert_eq!(rejects.len(), 2, "{stage}");
        assert!(rejects.iter().all(|row| row["reason"] == "empty" && row["attempts"] == 0), "{stage}: {rejects:?}");
    }
}

#[test]
fn a_teacher_of_no_use_is_asked_for_a_sample_and_not_for_everything() {
    let server = Server::start(|_, _| said(" ", "stop"));
    let project = with_stages(
        &server,
        r#"
  documents: { op: sql, query: "select lpad('1', 32, '0') as row_id, 'a' as doc_id, 'The text of unit-01 says little.' as text" }
  asked: { op: read, path: asked.jsonl }
  questions: { op: sql, from: { asked: asked }, query: "select row_id, lpad('1', 32, '0') as parent_id, text as question from asked" }
  rewrites: { op: rewrite, from: { documents: documents, questions: questions }, teacher: teacher, per_document: 3000, attempts: 1, min_yield: 0.2 }
"#,
    );
    let questions: String = (0..3000).map(|n| format!("{{\"text\": \"What is number {n}?\"}}\n")).collect();
    project.write("asked.jsonl", questions);
    let output = run(&project, &[], KEY);
    failed(&output, 1, &["units of work were rejected, and `min_yield` demands 20 % accepted: `too_short` ", "0 words"]);
    // A hundred are judged; as many more are asked as are under way: eight times those in flight.
    assert!((100..1000).contains(&server.requests()), "{} requests", server.requests());
}

#[test]
fn a_stage_that_accepts_too_little_says_why() {
    let server = Server::start(|asked, _| match asked.unit.as_str() {
        "unit-00" => said(&pair(&asked.unit), "stop"),
        "unit-01" => said(&pair(&asked.unit)[..40], "length"),
        _ => said("I'd rather not.", "stop"),
    });
    let project = project(&url(&server), 4, "");
    let parts = [
        "3 of 4 units of work were rejected: 25 % accepted, 30 % demanded by `min_yield` (`unparsable` 2, `length` 1); one says: ",
        "the output `qa.rejects` has them all",
    ];
    failed(&run(&project, &[], KEY), 1, &parts);
    let asked = server.requests();
    failed(&run(&project, &[], KEY), 1, &parts);
    assert_eq!((server.requests(), project.rows("qa.rejects", &[]).len()), (asked, 3));
}

#[test]
fn a_budget_that_covers_no_call_says_so_and_nothing_is_sent() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let small = with_budget(project(&url(&server), 3, ""), "0.03");
    let parts = ["the budget of $0.0300 doesn't cover one call, which may cost $0.2", "or lower `max_output_tokens`"];
    failed(&run(&small, &[], KEY), 3, &parts);
    // What is sent counts, not what it was before `extra_body`.
    let replaced = with_budget(project(&url(&server), 3, ", extra_body: { max_tokens: 32000 }"), "0.5");
    failed(&run(&replaced, &[], KEY), 3, &["the budget of $0.500 doesn't cover one call, which may cost $3.2"]);
    let unbounded = project(&url(&server), 3, ", extra_body: { max_tokens: null }");
    failed(&run(&unbounded, &[], KEY), 2, &["can't remove the bound on an answer"]);
    assert_eq!(server.requests(), 0);
    ran(&run(&with_budget(project(&url(&server), 3, ""), "0.5"), &[], KEY));
    assert_eq!(server.requests(), 3);
}

#[test]
fn a_teacher_that_is_not_there_is_named_at_once() {
    let nowhere = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let project = project(&format!("http://{nowhere}/v1"), 3, "");
    let output = run(&project, &[], KEY);
    let named = format!("the teacher at `http://{nowhere}/v1` can't be reached: ");
    failed(&output, 1, &[&named, "see that the server runs, and that `base_url` is its address", "every answer so far is kept"]);
    assert!(!project.call(&["show", "pipeline.yaml", "qa"]).status.success(), "nothing was committed");
}
