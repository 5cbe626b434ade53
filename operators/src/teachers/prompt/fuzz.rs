//! Templates that nobody meant.

use std::{collections::BTreeMap, time::Duration};

use ingrain_mutation::{Strategy, holds, mutated_text, strategy, text, within, worded};
use serde_json::{Value, json};

use super::{Prompt, tags::tags};

/// No template takes longer to compile or to be filled in.
const LONGEST: Duration = Duration::from_secs(2);
/// No fuel makes more of a short text, in bytes.
const LARGEST: usize = 100 << 20;

const WORDS: [&str; 64] = [
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{%- ",
    " -%}",
    "{# ",
    " #}",
    "{% raw %}",
    "{% endraw %}",
    "{% if title %}",
    "{% else %}",
    "{% endif %}",
    "{% for i in range(99999) %}",
    "{% for i in text %}",
    "{% endfor %}",
    "{% set x = text %}",
    "{% set x = x ~ x %}",
    "{% macro m(a) %}",
    "{% endmacro %}",
    "{{ m(m) }}",
    "{{ m(text) }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% block b %}",
    "{% endblock %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% call m() %}",
    "{% endcall %}",
    "{% do x %}",
    "{% with a = 1 %}",
    "{% endwith %}",
    "{% autoescape true %}",
    "{% break %}",
    "{% continue %}",
    "text",
    "title",
    "pairs",
    "draw",
    "question",
    "answer",
    "contexts",
    "options",
    " | ",
    "length",
    "replace('', text)",
    "join(text)",
    "indent(999999999)",
    "batch(1)",
    "slice(0)",
    "round(99)",
    "tojson",
    "[0]",
    "[-1:99999999999]",
    ".x",
    " * 99999999999",
    " ** 999",
    " // 0",
    " ~ text * 999999999",
    "loop.index",
    "range(0, 999999999, 0)",
];

const TEMPLATES: [&str; 8] = [
    include_str!("../../synthesize_qa/prompt.jinja"),
    include_str!("../../rewrite/focal.jinja"),
    include_str!("../../evaluate/answer.jinja"),
    "{% for i in range(9999) %}{% for k in range(9999) %}x{% endfor %}{% endfor %}",
    "{% set ns = namespace(x=text) %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro m(n) %}{{ n }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{{ 'x' * 999999999 }}{{ text | indent(99999999) }}",
    "{{ text | replace('', text) | replace('', text) | replace('', text) }}",
];

fn variables(text: &str) -> BTreeMap<String, Value> {
    let one = json!({
        "text": text, "title": null, "pairs": 8, "draw": 0, "question": "Who?", "answer": "Ida Brandt", "max_words": 90,
        "contexts": [{ "title": null, "text": text }], "options": [{ "letter": "A", "text": "Ida" }],
    });
    one.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn templates() -> impl Strategy<Value = String> {
    strategy::Union::new([mutated_text(&TEMPLATES, &WORDS).boxed(), worded(&WORDS, 40).boxed(), text(200).boxed()])
}

#[test]
fn any_template_renders_within_bounds_or_says_why_not() {
    holds(96, &(templates(), text(200)), |(template, text)| {
        let prompt = match within(LONGEST, || Prompt::new(&template)) {
            Ok(prompt) => prompt,
            Err(wrong) => return assert!(!wrong.is_empty()),
        };
        let names = ["text", "title"].into();
        prompt.unknown("/prompt", "`units`", &names);
        match within(LONGEST, || prompt.render(&variables(&text))) {
            Ok(rendered) => assert!(rendered.len() <= LARGEST, "{} bytes", rendered.len()),
            Err(failure) => assert!(failure.message.starts_with("the prompt can't be rendered: ")),
        }
    });
}

#[test]
fn what_is_not_a_tag_is_said_as_it_stands() {
    holds(96, &text(300), |text| {
        let plain = text.replace('{', "(");
        let prompt = Prompt::new(&plain).expect("no tag, no mistake");
        let rendered = prompt.render(&BTreeMap::new()).expect("no tag, no mistake");
        // One line break at the end is the file's, not the text's.
        let break_at_end = ["\r\n", "\n", "\r"].into_iter().find_map(|end| plain.strip_suffix(end));
        let expected = break_at_end.unwrap_or(&plain);
        assert_eq!(rendered, expected);
    });
}

#[test]
fn tags_are_found_in_any_text() {
    holds(192, &templates(), |template| {
        let lines = template.matches('\n').count() + 1;
        for tag in within(LONGEST, || tags(&template)) {
            assert!((1..=lines).contains(&tag.line()));
            assert!(tag.words().iter().all(|(line, word)| *line <= lines && !word.is_empty()));
        }
    });
}
