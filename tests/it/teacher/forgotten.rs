//! What was said about a forgotten document, by the server's own count.

use std::path::Path;

use super::{KEY, Server, content, pair, project, ran, run, said, url};
use crate::cache::walk;

#[test]
fn answers_that_were_rejected_go_too_and_no_other_is_asked_for_again() {
    let server = Server::start(|asked, _| match asked.unit.as_str() {
        "unit-03" => said("unit-03, in words that are no pair", "stop"),
        unit => said(&pair(unit), "stop"),
    });
    let project = project(&url(&server), 12, "");
    ran(&run(&project, &[], KEY));
    let asked = server.requests();
    let holding = |text: &str| {
        let files = [".ingrain", ".cache"].iter().flat_map(|folder| walk(&project.path(folder))).collect::<Vec<_>>();
        files.into_iter().filter(|file| String::from_utf8_lossy(&content(Path::new(file))).contains(text)).count()
    };
    assert!(holding("words that are no pair") > 0 && holding("unit-05 itself") > 0);
    for document in ["03.md", "05.md"] {
        let output = project.call(&["forget", "pipeline.yaml", document, "--apply"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    ran(&run(&project, &[], KEY));
    assert_eq!(project.rows("qa", &[]).len(), 10);
    let output = project.call(&["gc", "pipeline.yaml", "--forgotten"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((holding("unit-03"), holding("unit-05")), (0, 0));
    assert!(holding("unit-04 itself") > 0);
    ran(&run(&project, &["--force", "qa"], KEY));
    assert_eq!(server.requests(), asked, "ten documents are remembered, two are never asked about");
}
