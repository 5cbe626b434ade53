//! What a change to the documents costs, by the server's own count.

use std::{path::Path, process::Output};

use super::{KEY, Server, content, pair, project, ran, run, said, url};
use crate::cache::walk;

#[test]
fn a_change_to_a_thousand_documents_costs_what_has_changed() {
    let server = Server::start(|asked, _| said(&pair(&asked.unit), "stop"));
    let project = project(&url(&server), 0, "");
    let write = |n: usize, more: &str| {
        project.write(&format!("docs/{n:04}.md"), format!("The text of document {n} says little.{more}"));
    };
    (0..1000).for_each(|n| write(n, ""));
    let costs = || {
        let before = server.requests();
        ran(&run(&project, &[], KEY));
        server.requests() - before
    };
    assert_eq!(costs(), 1000);
    (1000..1010).for_each(|n| write(n, ""));
    assert_eq!(costs(), 10, "ten documents more");
    std::fs::remove_file(project.path("docs/0007.md")).expect("removed");
    assert_eq!(costs(), 0, "one less");
    assert_eq!(project.rows("qa", &[]).len(), 1009);
    write(500, " One sentence is new.");
    assert_eq!(costs(), 1, "one sentence");
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("the pipeline");
    project.write("pipeline.yaml", pipeline.replace("pipeline: taught", "pipeline: another\nseed: 9"));
    assert_eq!(costs(), 0, "another pipeline with another seed");
    project.write("pipeline.yaml", pipeline.replace("min_yield", "refresh: spring, min_yield"));
    assert_eq!(costs(), 1009, "asked anew because that is wanted");
}

#[test]
fn no_secret_is_left_anywhere_by_any_command() {
    const TOKEN: &str = "tok/en+with=signs";
    // A server that tells everything it hears, in answers and in errors.
    let server = Server::start(|asked, before| match (asked.unit.as_str(), before) {
        ("unit-01", 0) => super::error(500, &asked.head),
        ("unit-02", _) => super::error(400, &asked.head),
        _ => said(&pair(&asked.head.replace(['\r', '\n', '"'], " ")), "stop"),
    });
    let headers = ", headers: { x-team: \"${secret:TEAM_TOKEN}\" }";
    let project = project(&url(&server), 8, headers);
    let call = |words: &[&str]| -> Output {
        let mut command = project.command(words);
        command.env("TEACHER_KEY", KEY).env("TEAM_TOKEN", TOKEN).env("NO_PROXY", "127.0.0.1").env("INGRAIN_LOG", "trace");
        command.output().expect("starts")
    };
    let outputs = [
        call(&["run", "pipeline.yaml", "--json"]),
        call(&["run", "pipeline.yaml", "--verify"]),
        call(&["plan", "pipeline.yaml", "--json"]),
        call(&["why", "pipeline.yaml", "qa"]),
        call(&["show", "pipeline.yaml", "qa", "--json"]),
        call(&["show", "pipeline.yaml", "qa.rejects"]),
        call(&["show", "pipeline.yaml", "qa", "--prompts"]),
        call(&["export", "pipeline.yaml", "qa", "qa.jsonl"]),
        call(&["gc", "pipeline.yaml", "--grace", "0s"]),
    ];
    assert!(outputs[0].status.success(), "{}", String::from_utf8_lossy(&outputs[0].stderr));
    let heard = server.asked.lock().expect("not poisoned");
    assert!(heard.iter().all(|asked| asked.head.contains(TOKEN) && asked.head.contains(KEY)), "the server is told both");
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let mut references = 0;
    for file in walk(&project.path(".")) {
        let content = content(Path::new(&file));
        for secret in [KEY, TOKEN] {
            assert!(!holds(&content, secret), "`{secret}` stands in {file}");
        }
        references += usize::from(file.contains("/memo/") && holds(&content, "${secret:TEAM_TOKEN}"));
    }
    assert!(references > 0, "what the server said of the token is kept, under its name");
    for output in &outputs {
        for secret in [KEY, TOKEN] {
            let printed = holds(&output.stdout, secret) || holds(&output.stderr, secret);
            assert!(!printed, "`{secret}` was printed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
