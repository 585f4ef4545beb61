//! What the controllers refuse beyond the schema: the same checks, without a cluster.

use crate::api::prompt_flow::PromptFlowSpec;
use crate::api::rag_index::RagIndexSpec;
use crate::controllers::prompt_flow::compile;
use crate::controllers::rag_index::validate;

/// A fault that a controller would name.
pub(super) struct Fault {
    /// The field as the controller names it, such as `spec.variants[concise].weight`.
    pub(super) field: String,
    /// The same field with list positions, to find its line.
    pub(super) place: String,
    /// What is wrong and what helps.
    pub(super) message: String,
}

/// Faults of a flow. Templates in ConfigMaps are not known here and not checked.
pub(super) fn of_flow(spec: &PromptFlowSpec) -> Vec<Fault> {
    let place = |field: &str| {
        let named = field.strip_prefix("spec.variants[").and_then(|rest| rest.split_once(']'));
        let found = named.and_then(|(name, rest)| {
            let index = spec.variants.iter().position(|variant| variant.name == name)?;
            Some(format!("spec.variants[{index}]{rest}"))
        });
        found.unwrap_or_else(|| field.to_owned())
    };
    compile::check(spec)
        .into_iter()
        .map(|problem| Fault {
            place: place(&problem.field),
            message: match problem.line {
                Some(line) => format!("line {line} of the template: {}", problem.message),
                None => problem.message,
            },
            field: problem.field,
        })
        .collect()
}

/// Faults of an index.
pub(super) fn of_index(spec: &RagIndexSpec) -> Vec<Fault> {
    validate::check(spec)
        .into_iter()
        .map(|problem| {
            let (field, message) = problem.split_once(": ").unwrap_or(("spec", &problem));
            Fault { field: field.to_owned(), place: field.to_owned(), message: message.to_owned() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Checker;

    #[test]
    fn what_a_controller_would_refuse_is_found_at_its_line() {
        let flow = r#"apiVersion: llmops.dev/v1alpha1
kind: PromptFlow
metadata: {name: ask, namespace: team-a}
spec:
  models:
    writer:
      modelDeploymentRef: {name: smollm2}
  inputs:
    question: {type: String}
  nodes:
  - name: answer
    llm:
      model: writer
      messages:
      - role: user
        content: "{{ inputs.qestion }}"
  output: "{{ nodes.answer.text }}"
  variants:
  - name: control
    weight: 50
  - name: other
    weight: 50
    overrides:
      answer:
        llm:
          model: wirter
"#;
        let mut checker = Checker::new();
        let found: Vec<String> = checker.check("f", flow).problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "f:26: PromptFlow team-a/ask: spec.variants[other].overrides.answer.llm.model: no model has the alias `wirter`; did you mean `writer`?"
            ]
        );
        let flow = flow.replace("wirter", "writer").replace("name: ask", "name: ask2");
        let found: Vec<String> = checker.check("f", &flow).problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "f:16: PromptFlow team-a/ask2: spec.nodes[0].llm.messages[0].content: line 1 of the template: `inputs.qestion` is not defined; did you mean `inputs.question`?"
            ]
        );
        let index = r#"apiVersion: llmops.dev/v1alpha1
kind: RagIndex
metadata: {name: docs, namespace: team-a}
spec:
  sources:
  - name: docs
    configMap: {name: docs}
    include: ["a["]
"#;
        let found: Vec<String> = checker.check("i", index).problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "i:8: RagIndex team-a/docs: spec.sources[0].include[0]: `a[` is no pattern: unclosed character class; missing ']'"
            ]
        );
    }
}
