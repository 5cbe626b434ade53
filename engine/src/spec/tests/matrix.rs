use super::*;

/// Every stage with what it reads.
fn read(text: &str) -> Vec<String> {
    let (spec, diagnostics) = read_with(text, &[]);
    assert_eq!(diagnostics.render(false, 100), "", "in\n{text}");
    let input = |input: &Reference| match input.output.as_str() {
        "default" => input.stage_name(),
        output => format!("{}.{output}", input.stage_name()),
    };
    let inputs = |stage: &StageSpec| -> Vec<String> { stage.from.iter().flat_map(|port| &port.inputs).map(input).collect() };
    let stages = spec.expect("a pipeline").stages;
    stages.iter().map(|stage| format!("{} <- {}", stage.name, inputs(stage).join(" "))).collect()
}

fn stages(text: &str) -> String {
    format!("pipeline: p\nvars: {{ two: [2, 4] }}\nstages:\n{text}")
}

#[test]
fn a_stage_is_made_for_each_cell_with_its_values() {
    let text = stages(
        "  a: { op: chunk, max_tokens: \"${matrix.n}\", weights: \"${matrix.arm}\", column: \"c ${matrix.n}\", seed: \"${matrix.seed}\",\n    \
         matrix: { arm: { qa: [1, 0], both: [1, 1] }, n: [300k, 1.50], seed: [1] } }\n",
    );
    let (spec, diagnostics) = read_with(&text.replace("1.50", "2"), &[]);
    assert_eq!(diagnostics.render(false, 100), "");
    let spec = spec.expect("a pipeline");
    let names: Vec<&str> = spec.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["a[arm=both,n=300k,seed=1]", "a[arm=both,n=2,seed=1]", "a[arm=qa,n=300k,seed=1]", "a[arm=qa,n=2,seed=1]"]);
    let stage = &spec.stages[0];
    let config = &stage.operator.as_ref().expect("an operator").2;
    assert_eq!(config["max_tokens"], json!(300_000));
    assert_eq!(config["weights"], json!([1.0, 1.0]));
    assert_eq!(config["column"], json!("c 300k"));
    assert_eq!((stage.seed, stage.base.as_str(), stage.cell.label("arm")), (Some(1), "a", Some("both")));
    // A size isn't 1.5, and that is said where it stands.
    expect(&text, &[("`max_tokens`: expected a whole number or a text, found `1.5`", "1.50")]);
}

#[test]
fn readers_join_on_shared_axes_cross_on_others_and_choose() {
    let both = "  a: { op: even, number: \"${matrix.n}\", matrix: { n: \"${vars.two}\", m: [x, y] } }\n  \
                b: { op: even, number: 2, matrix: { n: [2, 4] }, from: \"z[k=1.0e-5]\" }\n  \
                z: { op: even, number: 2, matrix: { k: [1e-5, 2] } }\n";
    let with = |reader: &str| -> Vec<String> {
        let read = read(&stages(&format!("{both}  r: {{ op: even, number: 2, {reader} }}\n")));
        read.into_iter().filter(|line| line.starts_with("r")).collect()
    };
    assert_eq!(read(&stages(both))[4..6], ["b[n=2] <- z[k=0.00001]", "b[n=4] <- z[k=0.00001]"]);
    assert_eq!(
        with("from: { a: a, b: b.rejects }"),
        [
            "r[m=x,n=2] <- a[m=x,n=2] b[n=2].rejects",
            "r[m=x,n=4] <- a[m=x,n=4] b[n=4].rejects",
            "r[m=y,n=2] <- a[m=y,n=2] b[n=2].rejects",
            "r[m=y,n=4] <- a[m=y,n=4] b[n=4].rejects",
        ]
    );
    assert_eq!(
        with("from: { a: \"a[n=4]\", z: z }"),
        [
            "r[k=0.00001,m=x] <- a[m=x,n=4] z[k=0.00001]",
            "r[k=0.00001,m=y] <- a[m=y,n=4] z[k=0.00001]",
            "r[k=2,m=x] <- a[m=x,n=4] z[k=2]",
            "r[k=2,m=y] <- a[m=y,n=4] z[k=2]",
        ]
    );
    assert_eq!(with("from: \"a[n=4,m=y].removed\""), ["r <- a[m=y,n=4].removed"]);
    assert_eq!(with("from: b, matrix: { s: [0] }"), ["r[n=2,s=0] <- b[n=2]", "r[n=4,s=0] <- b[n=4]"]);
    assert_eq!(with("from: b, matrix: { n: [2, 4] }"), ["r[n=2] <- b[n=2]", "r[n=4] <- b[n=4]"], "the same axis");
    assert_eq!(with("from: \"${matrix.of}\", matrix: { of: { first: \"a[m=x]\", second: b } }").len(), 4);
}

#[test]
fn what_gathers_reads_all_cells() {
    let text = stages(
        "  a: { op: even, number: 2, matrix: { n: [2, 4], m: [x, y] } }\n  alone: { op: even, number: 2 }\n  \
         all: { op: gather, number: 2, from: { rows: [a.predictions, alone] } }\n  \
         some: { op: gather, number: 2, from: \"a[n=${matrix.n}]\", matrix: { n: [4] } }\n",
    );
    let read = read(&text);
    let all = "a[m=x,n=2].predictions a[m=x,n=4].predictions a[m=y,n=2].predictions a[m=y,n=4].predictions alone";
    assert_eq!(read[5], format!("all <- {all}"));
    assert_eq!(read[6], "some[n=4] <- a[m=x,n=4] a[m=y,n=4]");
}

#[test]
fn mistakes_are_named_once_at_their_place() {
    let own = |matrix: &str, expected: &[(&str, &str)]| {
        expect(&stages(&format!("  a: {{ op: even, number: 2, matrix: {matrix} }}\n")), expected);
    };
    own("{}", &[("`matrix` has no axis", "matrix")]);
    own("[1]", &[("`matrix` is a mapping of axes to their values", "[1]")]);
    own("{ n: [] }", &[("axis `n` has no values", "n")]);
    own("{ n: 3 }", &[("axis `n` needs a list of values, or a mapping of names to values", "3")]);
    own("{ n: [[1, 2], 3] }", &[("axis `n`: a value that is a list or a mapping needs a name", "[1, 2]")]);
    own("{ n: [2, 2.0] }", &[("axis `n` has `2` twice", "2.0")]);
    own("{ n: ['a b'] }", &[("axis `n`: \"a b\" can't stand in the name of a cell", "'a b'")]);
    own("{ 'a.b': [1] }", &[("`a.b` is no name for an axis", "'a.b'")]);
    let many: Vec<String> = (0..70).map(|n| n.to_string()).collect();
    own(&format!("{{ n: [{0}], m: [{0}] }}", many.join(", ")), &[("the matrix has too many cells", "matrix")]);

    let two = |more: &str, expected: &[(&str, &str)]| {
        let a = "  a: { op: even, number: \"${matrix.n}\", matrix: { n: [2, 4], arm: { qa: 1, docs: 2 } } }\n";
        expect(&stages(&format!("{a}  b: {{ op: even, number: 2, {more} }}\n")), expected);
    };
    two("from: 'a[arn=qa]'", &[("`a` has no axis `arn`", "'a[arn=qa]'")]);
    two("from: 'a[arm=qs]'", &[("`a` has no cell with arm=qs", "'a[arm=qs]'")]);
    two("from: a, refresh: '${matrix.x}'", &[("the stage has no axis `x`", "${matrix.x}")]);
    two("from: 'a[n=2]', refresh: '${matrix.n}'", &[("the stage has no axis `n`", "${matrix.n}")]);
    two("from: a, matrix: { n: [4, 6] }", &[("axis `n` meets other values of itself in the stage's own `matrix`", "from")]);
    two(
        "from: a, matrix: { arm: { qa: 1, docs: 3 } }",
        &[("axis `arm` meets other values of itself in the stage's own `matrix`", "from")],
    );
    let text = stages(
        "  a: { op: even, number: 2, matrix: { n: [2, 4] } }\n  b: { op: even, number: 2, matrix: { n: [2] } }\n  \
         c: { op: even, number: 2, from: { a: a, b: b } }\n",
    );
    let found = found(&text);
    assert_eq!((found[0].0.as_str(), found[0].1.as_str()), ("axis `n` meets other values of itself in `b`", "b"));
    assert!(found[0].3.starts_with("`2`, `4` and `2`: cells meet where an axis has the same values"), "{}", found[0].3);
    expect(
        &stages("  a: { op: even, number: \"${matrix.n}\", matrix: { n: [2, two, 4.5] } }\n"),
        &[("`number`: expected a whole number, found a text", "two"), ("`number`: expected a whole number, found `4.5`", "4.5")],
    );
    expect(
        &stages("  a: { op: chunk, max_tokens: 1, column: \"of ${matrix.n}\", matrix: { n: { x: [1] } } }\n"),
        &[("`${matrix.n}` is no text that can stand inside another", "${matrix.n}")],
    );
    expect(
        "pipeline: p\nvars: { x: '${matrix.n}' }\nstages: { a: { op: even, number: 2 } }\n",
        &[("`${matrix.n}` can't stand here: only stages have a matrix", "${matrix.n}")],
    );
}
