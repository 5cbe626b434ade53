//! `doctor --device`: what a device is, and whether and how fast it computes.

use serde_json::Value;

use crate::project::Project;

fn findings(project: &Project, words: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = ["doctor", "--device", "cpu", "--json"].iter().chain(words).copied().collect();
    let output = project.call(&words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("one finding a line")).collect()
}

fn of<'a>(findings: &'a [Value], kind: &str) -> Vec<&'a Value> {
    findings.iter().filter(|finding| finding["kind"] == kind).collect()
}

#[test]
fn a_device_says_what_it_is_and_that_it_computes() {
    let project = Project::new();
    let found = findings(&project, &[]);
    assert_eq!(found.len(), 2);
    let device = of(&found, "device")[0];
    assert_eq!(device["device"], "cpu");
    assert!(device["memory"].as_u64() > device["free"].as_u64() && device["threads"].as_u64() > Some(0), "{device}");
    assert_eq!(of(&found, "right").len(), 1);
    let said = project.call(&["doctor", "--device", "cpu"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("threads") && said.contains("product    right"), "{said}");
}

#[test]
fn everything_that_a_training_computes_is_compared_and_timed() {
    let project = Project::new();
    let found = findings(&project, &["--full", "--shapes", "tiny"]);
    let compared = of(&found, "compared");
    let quantities: std::collections::BTreeSet<&str> = compared.iter().filter_map(|found| found["quantity"].as_str()).collect();
    assert_eq!(quantities.into_iter().collect::<Vec<_>>(), ["gradient", "log-probabilities", "logits", "loss"]);
    for quantity in compared {
        assert!(quantity["passes"] == true && quantity["error"].as_f64() <= quantity["limit"].as_f64(), "{quantity}");
    }
    let rates = of(&found, "rate");
    for what in ["gemm", "attention", "layer", "training", "training memory", "decode", "decode memory"] {
        let rate = rates.iter().find(|rate| rate["what"] == what).unwrap_or_else(|| panic!("no `{what}`"));
        assert!(rate["shape"] == "tiny" && rate["value"].as_f64() > Some(0.0), "{rate}");
    }
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is() {
    let project = Project::new();
    for (words, said) in [
        (&["--device", "gpu"][..], "`gpu` is no device: write `auto`, `cpu` or `cuda:0`"),
        (&["--device", "cuda:99"], "`cuda:99` can't be used"),
        (&["--device", "cpu", "--full", "--shapes", "tiny,big"], "no shape is called `big`"),
        (&["--device", "cpu", "--shapes", "tiny"], "--full"),
        (&["--device", "cpu", "--store", "here"], "cannot be used with '--store <STORE>'"),
    ] {
        let words: Vec<&str> = ["doctor"].iter().chain(words).copied().collect();
        let output = project.call(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(output.stdout.is_empty(), "{words:?}");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(said), "{stderr}");
    }
}
