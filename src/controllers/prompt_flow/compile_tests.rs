use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A flow with both kinds of nodes and two variants.
pub(crate) fn sample() -> Value {
    json!({
        "models": {
            "writer": {"modelDeploymentRef": {"name": "smollm2"}, "fallback": ["spare"]},
            "spare": {"modelDeploymentRef": {"name": "tiny"}, "timeout": "10s", "retries": 0},
            "unused": {"modelDeploymentRef": {"name": "other"}},
        },
        "indexes": {"handbook": {"ragIndexRef": {"name": "docs"}}},
        "inputs": {
            "question": {"type": "String", "maxLength": 500, "description": "what to answer"},
            "lang": {"type": "String", "default": "en"},
        },
        "nodes": [
            {"name": "search", "retrieve": {"index": "handbook", "query": "{{ inputs.question }}", "topK": 4, "minScore": "0.20"}},
            {"name": "answer", "llm": {"model": "writer", "parameters": {"temperature": "0.70", "maxTokens": 100}, "messages": [
                {"role": "system", "contentFrom": {"configMapKeyRef": {"name": "prompts", "key": "system.txt"}}},
                {"role": "user", "content": "{% for c in nodes.search.chunks %}{{ c.text }}\n{% endfor %}{{ inputs.question }}"},
            ]}},
        ],
        "output": "{{ nodes.answer.text }}",
        "variants": [
            {"name": "control", "weight": 70},
            {"name": "concise", "weight": 30, "overrides": {
                "answer": {"llm": {"parameters": {"temperature": "0"}, "messages": [
                    {"role": "user", "content": "In one sentence, from {{ nodes.search.chunks[0].text }}: {{ inputs.question }}"},
                ]}},
                "search": {"retrieve": {"topK": 1}},
            }},
        ],
    })
}

fn config_maps() -> ConfigMaps {
    ConfigMaps::from([(
        "prompts".into(),
        BTreeMap::from([("system.txt".into(), "Answer in {{ inputs.lang }}.".into())]),
    )])
}

fn spec(value: &Value) -> PromptFlowSpec {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

fn compiled(value: &Value) -> Vec<Compiled> {
    compile(&spec(value), &config_maps()).unwrap_or_else(|error| panic!("{error}"))
}

fn revisions(value: &Value) -> Vec<String> {
    compiled(value).into_iter().map(|variant| variant.revision).collect()
}

/// The sample with a change at a JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut sample = sample();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match sample.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}")) {
        Value::Array(items) => match key.parse::<usize>() {
            Ok(index) => items[index] = value,
            Err(_) => items.push(value),
        },
        object => object[key] = value,
    }
    sample
}

#[test]
fn compiles_each_variant() {
    insta::assert_json_snapshot!(
        compiled(&sample())
            .into_iter()
            .map(|c| json!({
                "variant": c.variant, "weight": c.weight, "revision": c.revision, "content": c.content,
            }))
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_flow_without_variants_has_one_named_control() {
    let mut sample = sample();
    sample.as_object_mut().unwrap().remove("variants");
    let one = compiled(&sample);
    assert_eq!(one.len(), 1);
    assert_eq!((one[0].variant.as_str(), one[0].weight), ("control", 100));
    assert_eq!(one[0].revision, revisions(&self::sample())[0]);
}

#[test]
fn what_does_not_decide_behaviour_makes_no_revision() {
    let before = revisions(&sample());
    let swapped = {
        let mut sample = sample();
        sample["nodes"].as_array_mut().unwrap().reverse();
        sample
    };
    for (what, same) in [
        (
            "weights",
            with("/variants", {
                let mut variants = sample()["variants"].clone();
                variants[0]["weight"] = json!(10);
                variants[1]["weight"] = json!(90);
                variants
            }),
        ),
        ("order of nodes", swapped),
        ("an unused alias", with("/models/unused/modelDeploymentRef/name", json!("elsewhere"))),
        ("a description", with("/inputs/question/description", json!("another text"))),
        ("a default spelled out", with("/inputs/question/required", json!(true))),
        ("another spelling of a number", with("/nodes/1/llm/parameters/temperature", json!("0.7"))),
        ("another spelling of a duration", with("/models/spare/timeout", json!("10000ms"))),
        ("assignment", with("/assignment", json!({"unit": "Session", "salt": "x"}))),
        ("telemetry", with("/telemetry", json!({"capture": "Full"}))),
    ] {
        assert_eq!(revisions(&same), before, "{what}");
    }
}

#[test]
fn what_decides_behaviour_makes_a_revision() {
    let before = revisions(&sample());
    for (what, changed, expected) in [
        ("a prompt", with("/nodes/1/llm/messages/1/content", json!("{{ inputs.question }}")), [true, false]),
        ("an override", with("/variants/1/overrides/search/retrieve/topK", json!(2)), [false, true]),
        ("a fallback's timeout", with("/models/spare/timeout", json!("11s")), [true, true]),
        ("another model", with("/models/writer/modelDeploymentRef/name", json!("big")), [true, true]),
        ("an input's limit", with("/inputs/question/maxLength", json!(501)), [true, true]),
        ("the output", with("/output", json!("{{ nodes.answer.text | trim }}")), [true, true]),
    ] {
        let after = revisions(&changed);
        assert_eq!([after[0] != before[0], after[1] != before[1]], expected, "{what}");
    }
    let other = ConfigMaps::from([("prompts".into(), BTreeMap::from([("system.txt".into(), "Other.".into())]))]);
    let after = compile(&spec(&sample()), &other).unwrap();
    assert_ne!(after[0].revision, before[0]);
    assert_eq!(after[1].revision, before[1], "the variant replaces the message");
}

#[test]
fn faults_name_the_field_the_line_and_what_was_meant() {
    let llm = json!({"name": "x", "llm": {"model": "writer", "messages": [{"role": "user", "content": "hi"}]}});
    for (changed, expected) in [
        (
            with("/nodes/1/llm/messages/1/content", json!("ok\n{{ inputs.qestion }}")),
            "spec.nodes[1].llm.messages[1].content, line 2: `inputs.qestion` is not defined; did you mean `inputs.question`?",
        ),
        (
            with("/variants/1/overrides/answer/llm/messages/0/content", json!("{{ nodes.serach.chunks }}")),
            "spec.variants[concise].overrides.answer.llm.messages[0].content, line 1: `nodes.serach` is not defined; did you mean `nodes.search`?",
        ),
        (
            with("/nodes/0/retrieve/query", json!("{{ question }}")),
            "spec.nodes[0].retrieve.query, line 1: `question` is not defined; did you mean `inputs.question`?",
        ),
        (
            with("/nodes/0/retrieve/filters", json!({"tenant": "{{ inputs.tenant }}"})),
            "spec.nodes[0].retrieve.filters.tenant, line 1: `inputs.tenant` is not defined; known are `inputs.lang`, `inputs.question`",
        ),
        (
            with("/output", json!("{{ nodes.answer.txt }}")),
            "spec.output, line 1: `nodes.answer.txt` is not defined; did you mean `nodes.answer.text`?",
        ),
        (
            with("/output", json!("{{ nodes.answer.text")),
            "spec.output, line 1: unexpected end of input, expected end of variable block",
        ),
        (
            with("/nodes/1/llm/model", json!("wirter")),
            "spec.nodes[1].llm.model: no model has the alias `wirter`; did you mean `writer`?",
        ),
        (
            with("/nodes/0/retrieve/index", json!("hanbook")),
            "spec.nodes[0].retrieve.index: no index has the alias `hanbook`; did you mean `handbook`?",
        ),
        (
            with("/models/spare/fallback", json!(["writer"])),
            "spec.models.spare.fallback: the fallbacks go in a circle: spare → writer → spare; remove one of them",
        ),
        (
            with("/models/spare/fallback", json!(["spare"])),
            "spec.models.spare.fallback: the fallbacks go in a circle: spare → spare; remove one of them",
        ),
        (
            with("/models/writer/fallback", json!(["spar"])),
            "spec.models.writer.fallback[0]: no model has the alias `spar`; did you mean `spare`?",
        ),
        (with("/models/writer/timeout", json!("0s")), "spec.models.writer.timeout: must be above zero, such as 60s"),
        (with("/nodes/-", llm.clone()), ""),
        (
            with("/nodes/-", json!({"name": "answer", "llm": llm["llm"]})),
            "spec.nodes[2].name: another node is named `answer` already",
        ),
        (with("/nodes/-", json!({"name": "y"})), "spec.nodes[2]: a node has exactly one of llm and retrieve"),
        (
            with("/nodes/1/llm/messages/1", json!({"role": "user"})),
            "spec.nodes[1].llm.messages[1]: set exactly one of content and contentFrom",
        ),
        (
            with("/variants/1/name", json!("control")),
            "spec.variants[1].name: another variant is named `control` already",
        ),
        (with("/variants/1/weight", json!(20)), "spec.variants: the weights sum to 90; they must sum to 100"),
        (
            with("/variants/1/overrides/anwser", json!({})),
            "spec.variants[concise].overrides.anwser: there is no node `anwser`; did you mean `answer`?",
        ),
        (
            with("/variants/1/overrides/answer", json!({"retrieve": {"topK": 1}})),
            "spec.variants[concise].overrides.answer.retrieve: node `answer` is an llm node; override `llm`",
        ),
        (
            with("/variants/1/overrides/search", json!({"llm": {"model": "writer"}})),
            "spec.variants[concise].overrides.search.llm: node `search` is a retrieve node; override `retrieve`",
        ),
        (
            with("/variants/1/overrides/answer/llm/model", json!("nobody")),
            "spec.variants[concise].overrides.answer.llm.model: no model has the alias `nobody`; known are `spare`, `unused`, `writer`",
        ),
        (
            with("/nodes/1/llm/parameters/temperature", json!("2.5")),
            "spec.nodes[1].llm.parameters.temperature: is 2.5; use 0 to 2",
        ),
        (
            with("/variants/1/overrides/answer/llm/parameters/topP", json!("high")),
            "spec.variants[concise].overrides.answer.llm.parameters.topP: `high` is no decimal number; write it as \"0.7\"",
        ),
        (with("/nodes/0/retrieve/minScore", json!("-1.5")), "spec.nodes[0].retrieve.minScore: is -1.5; use -1 to 1"),
        (
            with("/inputs/lang", json!({"type": "Integer", "default": "en"})),
            "spec.inputs.lang.default: \"en\" is no Integer; change the default or spec.inputs' type",
        ),
        (
            with("/inputs/lang/maxLength", json!(1)),
            "spec.inputs.lang.default: has more than 1 characters, the maxLength",
        ),
        (
            with("/inputs/a-b", json!({"type": "String"})),
            "spec.inputs.a-b: templates could not read this name as `inputs.NAME`; use letters, digits and _, and begin with a letter",
        ),
        (
            with("/nodes/0/retrieve/query", json!("{{ nodes.answer.text }}")),
            "spec.nodes: nodes read each other's output in a circle: answer → search → answer; break it",
        ),
        (
            with("/nodes/0/retrieve/query", json!("{{ nodes.search.chunks | length }}")),
            "spec.nodes[0].retrieve.query: node `search` reads its own output",
        ),
        (
            with("/assignment", json!({"unit": "Header"})),
            "spec.assignment.header: is required with unit Header: name the header whose value is the unit",
        ),
    ] {
        let result = compile(&spec(&changed), &config_maps());
        if expected.is_empty() {
            assert!(result.is_ok());
            continue;
        }
        let Err(CompileError::Spec(problems)) = result else { panic!("{expected}: {result:?}") };
        let messages: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(messages, [expected]);
        assert_eq!(check(&spec(&changed)), problems, "offline");
    }
}

#[test]
fn several_faults_are_named_together() {
    let mut sample = with("/output", json!("{{ a }}"));
    sample["nodes"][0]["retrieve"]["query"] = json!("{{ b }}");
    let message = compile(&spec(&sample), &config_maps()).unwrap_err().to_string();
    assert!(
        message.contains("spec.output, line 1: `a`") && message.contains("spec.nodes[0].retrieve.query, line 1: `b`")
    );
}

#[test]
fn missing_config_maps_are_waited_for_and_their_templates_checked() {
    let spec = spec(&sample());
    let error = compile(&spec, &ConfigMaps::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "spec.nodes[1].llm.messages[0].contentFrom.configMapKeyRef: there is no ConfigMap `prompts` in the namespace; create it"
    );
    let with =
        |key: &str, text: &str| ConfigMaps::from([("prompts".into(), BTreeMap::from([(key.into(), text.into())]))]);
    let error = compile(&spec, &with("systm.txt", "")).unwrap_err();
    assert!(matches!(&error, CompileError::Missing { key_only: true, .. }));
    assert_eq!(
        error.to_string(),
        "spec.nodes[1].llm.messages[0].contentFrom.configMapKeyRef: ConfigMap `prompts` has no key `system.txt`; did you mean `systm.txt`?"
    );
    let error = compile(&spec, &with("system.txt", "a\n{{ inputs.x }}")).unwrap_err();
    assert!(matches!(&error, CompileError::Template(_)));
    assert_eq!(
        error.to_string(),
        "spec.nodes[1].llm.messages[0].contentFrom.configMapKeyRef (ConfigMap `prompts`, key `system.txt`), line 2: `inputs.x` is not defined; known are `inputs.lang`, `inputs.question`"
    );
    assert!(check(&spec).is_empty(), "offline, what a ConfigMap holds is not known");
}

#[test]
fn numbers_have_one_spelling() {
    for (text, expected) in [
        ("0.70", "0.7"),
        ("00.7", "0.7"),
        ("1", "1"),
        ("1.0", "1"),
        ("-0.50", "-0.5"),
        ("-0.0", "0"),
        ("0", "0"),
        ("10", "10"),
    ] {
        assert_eq!(normal(&Decimal::from(text)).0, expected);
    }
}

/// A chain or tree of llm nodes: node i reads some of those before it.
fn graphs() -> impl Strategy<Value = Vec<(usize, Vec<usize>)>> {
    (1_usize..8)
        .prop_flat_map(|count| {
            let reads = (0..count).map(|i| proptest::collection::vec(0..i.max(1), 0..3)).collect::<Vec<_>>();
            (reads, Just((0..count).collect::<Vec<_>>()).prop_shuffle())
        })
        .prop_map(|(reads, order)| {
            order.into_iter().map(|i| (i, reads[i].iter().copied().filter(|read| *read < i).collect())).collect()
        })
}

fn graph(nodes: &[(usize, Vec<usize>)]) -> PromptFlowSpec {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|(i, reads)| {
            let content: String = reads.iter().map(|read| format!("{{{{ nodes.n{read}.text }}}}")).collect();
            json!({"name": format!("n{i}"), "llm": {"model": "m", "messages": [{"role": "user", "content": content}]}})
        })
        .collect();
    spec(
        &json!({"models": {"m": {"modelDeploymentRef": {"name": "m"}}}, "nodes": nodes, "output": "{{ nodes.n0.text }}"}),
    )
}

proptest! {
    #[test]
    fn nodes_come_after_what_they_read_and_their_order_in_the_spec_does_not_matter(nodes in graphs()) {
        let shuffled = compile(&graph(&nodes), &ConfigMaps::new()).unwrap();
        let mut sorted = nodes;
        sorted.sort();
        let straight = compile(&graph(&sorted), &ConfigMaps::new()).unwrap();
        prop_assert_eq!(&shuffled, &straight);
        let mut seen = BTreeSet::new();
        for node in &shuffled[0].content.nodes {
            prop_assert!(node.after.iter().all(|name| seen.contains(name)));
            seen.insert(node.name.clone());
        }
        prop_assert_eq!(seen.len(), sorted.len());
    }

    #[test]
    fn a_revision_reads_back_as_it_was(nodes in graphs()) {
        let one = compile(&graph(&nodes), &ConfigMaps::new()).unwrap().remove(0);
        let text = serde_json::to_string(&one.content).unwrap();
        let back: FlowRevision = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(revision_of(&back).unwrap(), one.revision);
        prop_assert_eq!(back, one.content);
    }

    #[test]
    fn weights_make_no_revision(weight in 0..=100) {
        let mut changed = sample();
        changed["variants"][0]["weight"] = json!(weight);
        changed["variants"][1]["weight"] = json!(100 - weight);
        prop_assert_eq!(revisions(&changed), revisions(&sample()));
    }
}
