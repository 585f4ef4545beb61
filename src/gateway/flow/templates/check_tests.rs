use super::super::shape::{llm_output, retrieve_output};
use super::*;

fn context() -> BTreeMap<String, Field> {
    let mut inputs: BTreeMap<String, Field> = BTreeMap::new();
    inputs.insert("question".into(), Shape::Text.into());
    inputs.insert("count".into(), Shape::Number.into());
    inputs.insert("lang".into(), Field { shape: Shape::Text, optional: true });
    let nodes = Shape::object([("search", retrieve_output()), ("answer", llm_output())]);
    BTreeMap::from([("inputs".into(), Shape::Object(inputs).into()), ("nodes".into(), nodes.into())])
}

fn reads(source: &str) -> Vec<String> {
    let checked = check(source, &context()).unwrap_or_else(|problems| panic!("{source}: {problems:?}"));
    checked.reads.into_iter().map(|read| format!("{}:{}", read.line, read.path.join("."))).collect()
}

fn problems(source: &str) -> Vec<String> {
    check(source, &context()).unwrap_err().into_iter().map(|problem| problem.to_string()).collect()
}

#[test]
fn lists_what_is_read() {
    assert_eq!(reads("{{ inputs.question }}\n{{ nodes.answer.text }}"), ["1:inputs.question", "2:nodes.answer.text"]);
    assert_eq!(
        reads("{% for c in nodes.search.chunks %}{{ loop.index }} {{ c.text }}{% endfor %}"),
        ["1:nodes.search.chunks"]
    );
    assert_eq!(reads("{{ nodes['answer']['usage'].inputTokens }}"), ["1:nodes.answer.usage.inputTokens"]);
    assert_eq!(reads("{{ inputs | tojson }}"), ["1:inputs"]);
    assert!(reads("plain {% raw %}{{ x }}{% endraw %} {# {{ y }} #}").is_empty());
    let checked = check("{{ nodes.answer.text }}{{ nodes.search.chunks | length }}", &context()).unwrap();
    assert_eq!(checked.nodes().into_iter().collect::<Vec<_>>(), ["answer", "search"]);
}

#[test]
fn locals_are_no_reads_and_keep_their_shape() {
    for source in [
        "{% set q = inputs.question %}{{ q | upper }}",
        "{% set cs = nodes.search.chunks %}{% for c in cs | sort(attribute='score') %}{{ c.uri }}{% endfor %}",
        "{% with first = nodes.search.chunks | first %}{{ first.heading }}{% endwith %}",
        "{% macro cite(c) %}[{{ c.uri }}]{% endmacro %}{{ cite(nodes.search.chunks[0]) }}",
        "{{ nodes.search.chunks | map(attribute='text') | join('\n') }}",
        "{% for i in range(3) %}{{ i }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for c in nodes.search.chunks %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% if inputs.count > 2 %}{% set x = 'many' %}{% else %}{% set x = 'few' %}{% endif %}{{ x }}",
        "{{ nodes.search.chunks[:2][0].text }}",
        "{{ dict(a=1).a }}",
    ] {
        reads(source);
    }
}

#[test]
fn unknown_names_are_found_with_line_and_suggestion() {
    for (source, expected) in [
        ("\n{{ inputs.qestion }}", "line 2: `inputs.qestion` is not defined; did you mean `inputs.question`?"),
        ("{{ inputs['qestion'] }}", "line 1: `inputs.qestion` is not defined; did you mean `inputs.question`?"),
        ("{{ question }}", "line 1: `question` is not defined; did you mean `inputs.question`?"),
        ("{{ input.question }}", "line 1: `input` is not defined; did you mean `inputs`?"),
        ("{{ nodes.serach.chunks }}", "line 1: `nodes.serach` is not defined; did you mean `nodes.search`?"),
        ("{{ nodes.answer.txt }}", "line 1: `nodes.answer.txt` is not defined; did you mean `nodes.answer.text`?"),
        ("{{ nodes.search.text }}", "line 1: `nodes.search.text` is not defined; there is only `nodes.search.chunks`"),
        (
            "{% for c in nodes.search.chunks %}\n{{ c.txt }}{% endfor %}",
            "line 2: `txt` is not defined; did you mean `text`?",
        ),
        (
            "{% set cs = nodes.search.chunks %}{{ cs | map(attribute='url') | join }}",
            "line 1: `url` is not defined; did you mean `uri`?",
        ),
        (
            "{{ nodes.search.chunks.text }}",
            "line 1: `nodes.search.chunks` is a list and has no field `text`; loop over it, or take one item with `| first`",
        ),
        ("{{ inputs.question.lower }}", "line 1: `inputs.question` is a text and has no field `lower`"),
        (
            "{{ inputs.question.upper() }}",
            "line 1: a text has no method `upper()`; templates use filters, such as `… | upper`",
        ),
        ("{{ inputs.question | uper }}", "line 1: there is no filter `uper`; did you mean `upper`?"),
        ("{% if inputs.question is defned %}{% endif %}", "line 1: there is no test `defned`; did you mean `defined`?"),
        ("{{ debug() }}", "line 1: `debug` is not defined; known are `inputs`, `nodes`"),
        ("{% for c in inputs.count %}{% endfor %}", "line 1: a number cannot be looped over"),
        (
            "{{ nodes | tojson }}",
            "line 1: `nodes` can only be read by node and field, such as `nodes.answer.text`: the order of the nodes follows from it",
        ),
        (
            "{{ inputs.lang }}",
            "line 1: `inputs.lang` may be absent: test it with `{% if inputs.lang is defined %}`, or give it a default",
        ),
    ] {
        assert_eq!(problems(source), [expected], "{source}");
    }
    assert_eq!(problems("{{ a }}\n{{ b }}").len(), 2);
}

#[test]
fn a_member_that_may_be_absent_is_fine_when_tested() {
    for source in [
        "{% if inputs.lang is defined %}{{ inputs.lang }}{% endif %}",
        "{{ inputs.lang | default('en') }}",
        "{{ inputs.lang if inputs.lang is defined else 'en' }}",
    ] {
        assert_eq!(reads(source), ["1:inputs.lang"], "{source}");
    }
}

#[test]
fn syntax_errors_stand_alone() {
    let found = check("a\n{{ inputs. }}", &context()).unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].line, 2);
}

proptest::proptest! {
    #[test]
    fn no_text_panics(source in "[{}%# a-z.|'()\\[\\]\n]{0,80}") {
        let _ = check(&source, &context());
        if let Ok(template) = crate::gateway::flow::templates::Template::compile(&source) {
            let _ = template.render(&crate::gateway::flow::templates::Context::from_json(&serde_json::json!({"inputs": {}, "nodes": {}})));
        }
    }
}
