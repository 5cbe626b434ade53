//! What the documentation shows works.

use crate::project::{Project, repository};

fn checks(name: &str, yaml: &str) {
    let project = Project::new();
    project.write("pipeline.yaml", yaml);
    let mut command = project.command(&["check", "pipeline.yaml"]);
    let output = command.env("TEACHER_URL", "http://127.0.0.1:8000/v1").output().expect("starts");
    assert!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn pipelines_check() {
    let mut found = 0;
    for folder in ["pipelines", "src/init", "benches"] {
        for entry in std::fs::read_dir(repository().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                checks(&path.display().to_string(), &std::fs::read_to_string(&path).expect("read"));
                found += 1;
            }
        }
    }
    assert!(found >= 3, "{found} pipelines");
}

#[test]
fn yaml_in_the_readme_checks() {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("a README");
    let blocks: Vec<&str> = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let whole =
            if block.contains("stages:") { block.to_owned() } else { format!("pipeline: block\nstages:\n{}", indented(block)) };
        checks("README.md", &whole);
    }
}

fn indented(block: &str) -> String {
    block.lines().map(|line| format!("  {line}\n")).collect()
}

#[test]
fn a_started_project_checks_and_is_not_overwritten() {
    let project = Project::new();
    assert!(project.call(&["init", "new"]).status.success());
    assert!(project.call(&["check", "new/pipeline.yaml"]).status.success());
    let again = project.call(&["init", "new"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("there already"));
}

#[test]
fn pipelines_are_valid_by_the_schema_that_editors_use() {
    let printed = Project::new().call(&["schema"]).stdout;
    let schema: serde_json::Value = serde_json::from_slice(&printed).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let mut texts = Vec::new();
    for folder in ["pipelines", "src/init", "benches"] {
        for entry in std::fs::read_dir(repository().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                texts.push((path.display().to_string(), std::fs::read_to_string(&path).expect("read")));
            }
        }
    }
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("a README");
    let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    texts.extend(blocks.filter(|block| block.contains("stages:")).map(|block| ("README.md".to_owned(), block.to_owned())));
    assert!(texts.len() >= 5, "{} pipelines", texts.len());
    for (name, text) in &texts {
        let pipeline: serde_json::Value = serde_yaml::from_str(text).expect("YAML");
        let wrong: Vec<String> =
            validator.iter_errors(&pipeline).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert_eq!(wrong, Vec::<String>::new(), "{name}");
    }
    let wrong = serde_json::json!({ "pipeline": "p", "stages": { "a": { "op": "read", "path": "a", "formt": "text" } } });
    assert!(!validator.is_valid(&wrong), "it finds a mistake");
}

#[test]
fn the_schema_is_json_and_knows_every_operator() {
    let project = Project::new();
    let output = project.call(&["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = schema.to_string();
    let listed = project.call(&["operators"]);
    for operator in String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.split_whitespace().next()) {
        assert!(text.contains(&format!("\"{operator}\"")), "`{operator}` isn't in the schema");
        assert!(project.call(&["operators", operator]).status.success());
    }
}

#[test]
fn no_file_is_too_long_to_read_and_no_name_is_vague() {
    let mut long = Vec::new();
    for path in crate::cache::walk(repository()) {
        if !path.ends_with(".rs") || path.contains("/target/") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("read");
        let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
        if lines > 600 && !path.ends_with("/tests.rs") {
            long.push(format!("{path}: {lines}"));
        }
        let name = std::path::Path::new(&path).file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(!["utils", "util", "common", "helpers", "manager", "misc"].contains(&name.as_str()), "{path}");
    }
    assert_eq!(long, Vec::<String>::new(), "files over 600 lines without their tests");
}
