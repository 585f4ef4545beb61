use std::sync::{Arc, LazyLock};

use proptest::prelude::*;

use super::*;
use crate::indexer::embed::{DIR_ENV, load_tokenizer};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let dir = std::env::var_os(DIR_ENV)
        .expect("set LLMOPS_EMBEDDER_DIR to the folder with model.onnx and tokenizer.json; `make test` prepares it");
    load_tokenizer(&std::path::Path::new(&dir).join("tokenizer.json")).unwrap().0
});

fn how(strategy: ChunkingStrategy, max_tokens: i32, overlap_tokens: i32) -> Chunking {
    Chunking { strategy, max_tokens, overlap_tokens, context_headings: true }
}

fn tokens(text: &str) -> usize {
    TOKENIZER.encode_fast(text, false).unwrap().len()
}

fn markdown(text: &str, max_tokens: i32) -> Vec<Chunk> {
    chunk(text, Format::Markdown, &how(ChunkingStrategy::Markdown, max_tokens, 0), &TOKENIZER).unwrap()
}

#[test]
fn sections_follow_headings_and_know_their_path() {
    let text = "Intro.\n\n# Guide\n\n## Install `llmops`\n\nRun it.\n\n## Roll back\n\nUndo it.\n\n# Limits\n\nNone.\n";
    let chunks = markdown(text, 64);
    let seen: Vec<_> = chunks.iter().map(|c| (c.heading.as_str(), c.context.as_str(), c.text.as_str())).collect();
    assert_eq!(
        seen,
        [
            ("", "", "Intro."),
            ("Guide > Install llmops", "", "# Guide\n\n## Install `llmops`\n\nRun it."),
            ("Guide > Roll back", "Guide", "## Roll back\n\nUndo it."),
            ("Limits", "", "# Limits\n\nNone."),
        ]
    );
}

#[test]
fn later_chunks_of_a_section_carry_its_path() {
    let text = format!("# Guide\n\n## Steps\n\n{}", "Do the next thing now.\n\n".repeat(40));
    let chunks = markdown(&text, 64);
    assert!(chunks.len() > 3);
    assert_eq!(chunks[0].context, "");
    assert!(chunks[1..].iter().all(|chunk| chunk.context == "Guide > Steps" && chunk.text.ends_with("now.")));
    assert!(chunks[1].contextual_text().starts_with("Guide > Steps\n\nDo the next"));
}

#[test]
fn code_and_tables_stay_whole_when_they_fit() {
    let code = "```yaml\nkind: RagIndex\nspec:\n  replicas: 1\n```";
    let table = "| field | default |\n| --- | --- |\n| maxTokens | 240 |\n| topK | 8 |";
    let prose = "This sentence has a few words. ".repeat(8);
    let chunks = markdown(&format!("# A\n\n{prose}\n\n{code}\n\n{prose}\n\n{table}\n"), 80);
    for block in [code, table] {
        assert!(chunks.iter().any(|chunk| chunk.text.contains(block)), "{chunks:#?}");
    }
}

#[test]
fn a_hash_in_plain_text_is_no_heading() {
    let plain = how(ChunkingStrategy::Markdown, 64, 0);
    let chunks = chunk("# not a heading\n\ntext", Format::Text, &plain, &TOKENIZER).unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].heading, "");
}

#[test]
fn one_line_of_half_a_megabyte_is_cut_into_bounded_chunks() {
    for word in ["word ", "字", "x", "🙂", "é"] {
        let text = word.repeat(500_000 / word.len());
        let chunks = markdown(&text, 240);
        assert!(chunks.len() > 1, "{word}");
        assert!(chunks.iter().all(|chunk| tokens(&chunk.text) <= 240 && chunk.text.len() <= 240 * 1024), "{word}");
    }
}

#[test]
fn whole_is_one_chunk_and_blank_is_none() {
    let whole = how(ChunkingStrategy::Whole, 16, 0);
    let text = format!("# Title\n\n{}", "word ".repeat(500));
    let chunks = chunk(&text, Format::Markdown, &whole, &TOKENIZER).unwrap();
    assert_eq!((chunks.len(), chunks[0].heading.as_str()), (1, "Title"));
    for strategy in [ChunkingStrategy::Whole, ChunkingStrategy::Fixed, ChunkingStrategy::Markdown] {
        assert!(chunk(" \n\n\t ", Format::Markdown, &how(strategy, 16, 0), &TOKENIZER).unwrap().is_empty());
    }
}

#[test]
fn overlap_repeats_the_end_of_the_chunk_before() {
    let text: String = (0..200).map(|n| format!("Sentence number {n} is here. ")).collect();
    for strategy in [ChunkingStrategy::Markdown, ChunkingStrategy::Fixed] {
        let chunks = chunk(&text, Format::Markdown, &how(strategy, 60, 12), &TOKENIZER).unwrap();
        for pair in chunks.windows(2) {
            let shared = pair[0].range.end.saturating_sub(pair[1].range.start);
            assert!(shared > 0, "{pair:?}");
            assert!(tokens(&text[pair[1].range.start..pair[0].range.end]) <= 12, "{pair:?}");
        }
    }
}

fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        (1usize..5, "[A-Za-z ]{0,30}").prop_map(|(level, title)| format!("{} {title}\n\n", "#".repeat(level))),
        "[a-z ,.!?]{0,400}".prop_map(|prose| format!("{prose}\n\n")),
        "[a-zA-Z0-9+/=]{1,300}".prop_map(|word| format!("{word}\n")),
        "\\PC{0,80}".prop_map(|any| format!("{any}\n")),
        proptest::collection::vec("[a-z .]{0,60}", 1..12).prop_map(|items| items
            .iter()
            .map(|item| format!("- {item}\n"))
            .collect::<String>()
            + "\n"),
        proptest::collection::vec("[a-z =;]{0,60}", 1..20)
            .prop_map(|lines| format!("```\n{}\n```\n\n", lines.join("\n"))),
        proptest::collection::vec("[a-z ]{1,20}", 1..10).prop_map(|rows| {
            format!("| a | b |\n|---|---|\n{}\n", rows.iter().map(|row| format!("| {row} | x |\n")).collect::<String>())
        }),
        Just("[link]: http://example.com/a\n\n".to_owned()),
        Just("> quoted text here.\n>\n> - with a list\n\n".to_owned()),
        Just("---\ntitle: x\n---\n".to_owned()),
        Just("<div>\nhtml\n</div>\n\n".to_owned()),
        Just("\r\n\r\n".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_are_bounded_ordered_complete_and_repeatable(
        parts in proptest::collection::vec(fragment(), 0..12),
        max_tokens in 16i32..120,
        overlap in 0i32..60,
        strategy in prop_oneof![Just(ChunkingStrategy::Markdown), Just(ChunkingStrategy::Fixed)],
        format in prop_oneof![Just(Format::Markdown), Just(Format::Text)],
        context_headings in any::<bool>(),
    ) {
        let text = parts.concat();
        let how = Chunking { strategy, max_tokens, overlap_tokens: overlap.min(max_tokens / 2), context_headings };
        let chunks = chunk(&text, format, &how, &TOKENIZER).unwrap();
        let mut covered = 0;
        for chunk in &chunks {
            prop_assert_eq!(&chunk.text, &text[chunk.range.clone()]);
            prop_assert!(tokens(&chunk.contextual_text()) <= max_tokens as usize, "{:?}", chunk);
            let gap = text.get(covered..chunk.range.start).unwrap_or("");
            prop_assert!(gap.trim().is_empty(), "lost {:?}", gap);
            prop_assert!(chunk.range.end > covered, "a chunk without anything new: {:?}", chunk);
            covered = chunk.range.end;
        }
        prop_assert!(text[covered..].trim().is_empty(), "lost the end {:?}", &text[covered..]);
        prop_assert_eq!(chunks, chunk(&text, format, &how, &TOKENIZER).unwrap());
    }
}
