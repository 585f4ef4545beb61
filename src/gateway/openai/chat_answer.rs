//! Reading an engine's answer to a chat completion, streamed or whole. Pure.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use super::sse::{Cutter, Event};

/// Longest answer, in bytes.
const MAX_TEXT: usize = 8 * 1024 * 1024;

/// A complete answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatAnswer {
    /// The text.
    pub text: String,
    /// Tokens that were read.
    pub input_tokens: u64,
    /// Tokens that were written.
    pub output_tokens: u64,
}

/// Reads an answer as its bytes come.
#[derive(Debug, Default)]
pub struct ChatReader {
    streamed: bool,
    cutter: Cutter,
    whole: Vec<u8>,
    text: String,
    deltas: u64,
    usage: Option<(u64, u64)>,
    finished: bool,
    complete: bool,
}

impl ChatReader {
    /// Looks at the response's headers: an engine may answer a request for a stream as a whole.
    pub fn start(&mut self, headers: &HeaderMap) {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.streamed = kind.starts_with("text/event-stream");
    }

    /// Adds bytes and gives the text that they bring.
    ///
    /// # Errors
    /// When they are not of the OpenAI API, or report an error.
    pub fn push(&mut self, bytes: &[u8]) -> Result<String, String> {
        if !self.streamed {
            if self.whole.len() + bytes.len() > MAX_TEXT {
                return Err(format!("it is longer than {MAX_TEXT} bytes"));
            }
            self.whole.extend_from_slice(bytes);
            return Ok(String::new());
        }
        let events = self.cutter.push(bytes).map_err(|error| error.to_string())?;
        let mut text = String::new();
        for event in &events {
            text.push_str(&self.event(event)?);
        }
        Ok(text)
    }

    /// The stream has ended; gives the text that this brings.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn end(&mut self) -> Result<String, String> {
        if self.streamed {
            let text = self.cutter.rest().map(|event| self.event(&event)).transpose()?;
            // Some engines close the stream after the last piece without [DONE].
            self.complete |= self.finished;
            return Ok(text.unwrap_or_default());
        }
        let value: Value = serde_json::from_slice(&self.whole).map_err(|error| error.to_string())?;
        failure(&value)?;
        self.usage(&value);
        let content = value.pointer("/choices/0/message/content");
        let text = content.and_then(Value::as_str).ok_or("it has no choices[0].message.content")?;
        self.complete = true;
        self.add(text)
    }

    fn event(&mut self, event: &Event) -> Result<String, String> {
        let data = event.data.trim();
        if data.is_empty() {
            return Ok(String::new());
        }
        if data == "[DONE]" {
            self.complete = true;
            return Ok(String::new());
        }
        let value: Value = serde_json::from_str(data).map_err(|error| format!("an event is not JSON: {error}"))?;
        failure(&value)?;
        self.usage(&value);
        self.finished |= value.pointer("/choices/0/finish_reason").is_some_and(|reason| !reason.is_null());
        match value.pointer("/choices/0/delta/content").and_then(Value::as_str) {
            Some(text) => self.add(text),
            None => Ok(String::new()),
        }
    }

    fn add(&mut self, text: &str) -> Result<String, String> {
        if self.text.len() + text.len() > MAX_TEXT {
            return Err(format!("it is longer than {MAX_TEXT} bytes"));
        }
        self.deltas += u64::from(!text.is_empty());
        self.text.push_str(text);
        Ok(text.to_owned())
    }

    fn usage(&mut self, value: &Value) {
        self.usage = usage_of(value).or(self.usage);
    }

    /// Whether the answer has ended as it should.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether there was any text.
    pub fn has_text(&self) -> bool {
        !self.text.is_empty()
    }

    /// Tokens read and written. Where the engine reports none, each piece counts as a token written.
    pub fn tokens(&self) -> (u64, u64) {
        self.usage.unwrap_or((0, self.deltas))
    }

    /// The answer.
    pub fn finish(self) -> ChatAnswer {
        let (input_tokens, output_tokens) = self.tokens();
        ChatAnswer { text: self.text, input_tokens, output_tokens }
    }
}

/// Tokens read and written that a response or event reports.
pub fn usage_of(value: &Value) -> Option<(u64, u64)> {
    let usage = value.get("usage")?;
    let count = |name: &str| usage.get(name).and_then(Value::as_u64);
    let input = count("prompt_tokens")?;
    let output = count("completion_tokens").or_else(|| count("total_tokens")?.checked_sub(input));
    Some((input, output.unwrap_or(0)))
}

fn failure(value: &Value) -> Result<(), String> {
    match value.get("error") {
        None | Some(Value::Null) => Ok(()),
        Some(error) => {
            let message = error.get("message").unwrap_or(error);
            Err(format!("it reports: {}", message.as_str().map_or_else(|| message.to_string(), str::to_owned)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn reader(kind: &'static str) -> ChatReader {
        let mut reader = ChatReader::default();
        reader.start(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]));
        reader
    }

    #[test]
    fn reads_a_stream_to_its_end() {
        let mut reader = reader("text/event-stream; charset=utf-8");
        let mut text = String::new();
        for piece in [
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Grü\"}}]}\n\ndata: {\"choi",
            "ces\":[{\"delta\":{\"content\":\"ße\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        ] {
            text.push_str(&reader.push(piece.as_bytes()).unwrap());
            assert!(!reader.is_complete());
        }
        reader
            .push(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n")
            .unwrap();
        assert!(reader.is_complete());
        assert_eq!(text, "Grüße");
        assert_eq!(reader.finish(), ChatAnswer { text: "Grüße".into(), input_tokens: 7, output_tokens: 2 });
    }

    #[test]
    fn a_stream_that_ends_before_its_answer_is_not_complete() {
        let mut cut = reader("text/event-stream");
        cut.push(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n").unwrap();
        cut.end().unwrap();
        assert!(!cut.is_complete());
        assert_eq!(cut.tokens(), (0, 1));
        let mut closed = reader("text/event-stream");
        closed.push(b"data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n").unwrap();
        closed.end().unwrap();
        assert!(closed.is_complete());
    }

    #[test]
    fn reads_an_answer_as_a_whole() {
        let mut reader = reader("application/json");
        reader.push(br#"{"choices":[{"message":{"content":"hi"}}],"#).unwrap();
        reader.push(br#""usage":{"prompt_tokens":3,"total_tokens":4}}"#).unwrap();
        assert_eq!(reader.end().unwrap(), "hi");
        assert!(reader.is_complete());
        assert_eq!(reader.tokens(), (3, 1));
    }

    #[test]
    fn reported_errors_are_errors() {
        let mut stream = reader("text/event-stream");
        let error = stream.push(b"data: {\"error\":{\"message\":\"out of memory\"}}\n\n").unwrap_err();
        assert_eq!(error, "it reports: out of memory");
        let mut whole = reader("application/json");
        whole.push(b"{}").unwrap();
        assert!(whole.end().unwrap_err().contains("choices[0]"));
    }
}
