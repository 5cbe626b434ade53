//! Stages that are made for each cell of a matrix.

use std::process::Output;

use serde_json::{Value, json};

use crate::project::Project;

const STUDY: &str = r#"pipeline: study
models: { offline: { offline: {} } }
stages:
  rows:
    op: sql
    query: >
      select lpad('1', 32, '0') as row_id, '1' as question_id, 1.0 as score
      union all select lpad('2', 32, '0'), '2', 3.0
  scaled:
    op: sql
    from: { rows: rows }
    matrix: { arm: { half: 0.5, twice: 2 }, plus: [0, 10] }
    query: "select row_id, question_id, score * ${matrix.arm} + ${matrix.plus} as score from rows"
  shifted: { op: sql, from: scaled, query: "select row_id, question_id, score + 1 as score from scaled" }
  one: { op: sql, from: { rows: "scaled[arm=half,plus=10]" }, query: "select row_id, question_id, score from rows" }
  all: { op: compare, from: shifted, column: score, baseline: "shifted[arm=half,plus=0]" }
"#;

const CELLS: [&str; 4] = ["[arm=half,plus=0]", "[arm=half,plus=10]", "[arm=twice,plus=0]", "[arm=twice,plus=10]"];

fn study() -> Project {
    let project = Project::new();
    project.write("pipeline.yaml", STUDY);
    project
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn each_cell_is_a_stage_and_runs_once() {
    let project = study();
    let said = project.ran(&[]);
    let mut expected: Vec<String> = ["rows", "one", "all"].map(str::to_owned).into();
    for stage in ["scaled", "shifted"] {
        expected.extend(CELLS.map(|cell| format!("{stage}{cell}")));
    }
    expected.sort();
    assert_eq!(said.executed(), expected);
    assert!(project.ran(&[]).executed().is_empty());

    let score = |output: &str| -> Vec<f64> {
        let mut scores: Vec<f64> = project.rows(output, &[]).iter().map(|row| row["score"].as_f64().expect("a score")).collect();
        scores.sort_by(f64::total_cmp);
        scores
    };
    assert_eq!(score("shifted[arm=twice,plus=10]"), [13.0, 17.0]);
    assert_eq!(score("one"), [10.5, 11.5]);
    let compared = project.rows("all", &[]);
    let of = |arm: &str, plus: &str| -> &Value {
        let wanted = format!("shifted[arm={arm},plus={plus}] - shifted[arm=half,plus=0]");
        compared.iter().find(|row| row["comparison"] == *wanted).unwrap_or_else(|| panic!("{wanted}: {compared:?}"))
    };
    assert_eq!(of("twice", "10")["value"], json!(13.0));
    assert_eq!(of("half", "10")["value"], json!(10.0));
}

#[test]
fn only_what_a_cell_says_decides_whether_it_runs() {
    let project = study();
    project.ran(&[]);
    // Names of axes and of values are in no key but that of what gathers them.
    project.write("pipeline.yaml", STUDY.replace("arm", "factor").replace("half", "smaller"));
    assert_eq!(project.ran(&[]).executed(), ["all"]);
    // A value changes its own cells, and one more makes more of them.
    project.write("pipeline.yaml", STUDY.replace("twice: 2", "twice: 3").replace("[0, 10]", "[0, 10, 20]"));
    let said = project.ran(&[]);
    let executed: Vec<&str> = said.executed().into_iter().filter(|stage| stage.starts_with("scaled")).collect();
    assert_eq!(
        executed,
        ["scaled[arm=half,plus=20]", "scaled[arm=twice,plus=0]", "scaled[arm=twice,plus=10]", "scaled[arm=twice,plus=20]"]
    );
}

#[test]
fn commands_take_a_cell_or_all_of_them() {
    let project = study();
    let said = project.ran(&["--until", "shifted[arm=twice]"]);
    assert_eq!(
        said.executed(),
        [
            "rows",
            "scaled[arm=twice,plus=0]",
            "scaled[arm=twice,plus=10]",
            "shifted[arm=twice,plus=0]",
            "shifted[arm=twice,plus=10]"
        ]
    );
    let planned = text(&project.call(&["plan", "pipeline.yaml"]));
    let line =
        |stage: &str| planned.lines().find(|line| line.starts_with(stage)).unwrap_or_else(|| panic!("{planned}")).to_owned();
    assert_eq!(line("rows"), "rows     cached, 2 rows");
    assert_eq!(line("scaled"), "scaled   4 cells: 2 cached, 2 will run: first run");
    assert!(line("shifted").starts_with("shifted  4 cells: 2 cached, 2 unknown"), "{planned}");
    let told = text(&project.call(&["plan", "pipeline.yaml", "--json"]));
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let cell = told.iter().find(|stage| stage["stage"] == "scaled[arm=twice,plus=10]").expect("a stage for each cell");
    assert_eq!((&cell["cell"], &cell["status"]), (&json!({ "arm": "twice", "plus": "10" }), &json!("cached")));

    let shown = project.rows("scaled[arm=twice]", &[]);
    let labels: Vec<(&Value, &Value)> = shown.iter().map(|row| (&row["arm"], &row["plus"])).collect();
    assert_eq!(labels.len(), 4);
    assert!(labels.iter().all(|(arm, _)| **arm == "twice") && labels[0].1 == "0" && labels[3].1 == "10", "{shown:?}");

    project.ran(&["--force", "scaled[plus=0]", "--until", "scaled"]);
    let why = text(&project.call(&["why", "pipeline.yaml", "shifted[arm=half,plus=10]"]));
    assert!(why.starts_with("`shifted[arm=half,plus=10]` has to run:\n  first run"), "{why}");

    for (words, message) in [
        (["show", "pipeline.yaml", "scaled[arm=thrice]"], "`scaled` has no cell `[arm=thrice]`"),
        (["why", "pipeline.yaml", "scled"], "no stage is called `scled`"),
        (["export", "pipeline.yaml", "scaled"], "`scaled` is 4 cells of a matrix"),
    ] {
        let mut words = words.to_vec();
        if words[0] == "export" {
            words.push("out.jsonl");
        }
        let said = project.call(&words);
        assert_eq!(said.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&said.stderr).contains(message), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

#[test]
fn a_matrix_of_64_cells_is_planned_at_once() {
    let project = Project::new();
    let text = STUDY.replace("[0, 10]", &format!("{:?}", (0..32).collect::<Vec<_>>())).replace(",plus=10]", ",plus=1]");
    project.write("pipeline.yaml", text);
    assert_eq!(project.ran(&[]).executed().len(), 3 + 2 * 64);
    let planned = self::text(&project.call(&["plan", "pipeline.yaml"]));
    assert_eq!(planned.lines().count(), 5, "a line for each stage of the file:\n{planned}");
    assert!(planned.contains("scaled   64 cells: 64 cached\n"), "{planned}");
}
