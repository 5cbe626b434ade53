//! Wrong pipelines, and exactly what a person sees.

use crate::project::{Project, repository};

#[test]
fn messages() {
    insta::glob!(repository(), "tests/errors/*.yaml", |path| {
        let project = Project::new();
        project.write("pipeline.yaml", std::fs::read(path).expect("a file"));
        let output = project.call(&["check", "pipeline.yaml"]);
        assert_eq!(output.status.code(), Some(2), "a mistake ends with 2");
        assert!(output.stdout.is_empty(), "messages go to stderr");
        insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr));
    });
}

#[test]
fn fifty_mistakes_are_fifty_messages() {
    let project = Project::new();
    let stages: String = (0..50).map(|n| format!("  s{n}: {{ op: read, path: x.txt, wrong_{n}: 1 }}\n")).collect();
    project.write("pipeline.yaml", format!("pipeline: fifty\nstages:\n{stages}"));
    let output = project.call(&["check", "pipeline.yaml"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    for n in 0..50 {
        assert_eq!(stderr.matches(&format!("`wrong_{n}`")).count(), 1, "mistake {n}:\n{stderr}");
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let project = Project::new();
    project.write("pipeline.yaml", "pipeline: later\nstages:\n  a: { op: read, path: x.txt }\n");
    let output = project.call(&["run", "pipeline.yaml", "--cluster", "df://x:1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`--cluster` isn't built yet"));
    assert_eq!(project.call(&["report"]).status.code(), Some(2));
}
