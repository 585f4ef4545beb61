//! Server-sent events: cutting a stream of bytes into events, and writing them. Pure.

use bytes::{Bytes, BytesMut};
use serde_json::Value;

/// Longest event, in bytes: a stream without an end of event must not fill the memory.
const MAX_EVENT: usize = 8 * 1024 * 1024;

/// An event as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its bytes, with the empty line that ends it.
    pub raw: Bytes,
    /// Its data lines, joined.
    pub data: String,
}

/// Cuts a stream into events.
#[derive(Debug, Default)]
pub struct Cutter {
    buffer: BytesMut,
    /// Bytes already searched for the end of an event.
    searched: usize,
}

/// An event that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {MAX_EVENT} bytes")]
pub struct TooLong;

impl Cutter {
    /// Adds bytes and gives the events that are complete now.
    ///
    /// # Errors
    /// When an event grows too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.end_of_event() {
            let raw = self.buffer.split_to(end).freeze();
            self.searched = 0;
            events.push(Event { data: data(&raw), raw });
        }
        if self.buffer.len() > MAX_EVENT { Err(TooLong) } else { Ok(events) }
    }

    /// What is left when the stream has ended: an event without an empty line after it.
    pub fn rest(&mut self) -> Option<Event> {
        let raw = self.buffer.split().freeze();
        self.searched = 0;
        (!raw.is_empty()).then(|| Event { data: data(&raw), raw })
    }

    /// Where the first event ends: after two line ends in a row, each `\n` or `\r\n`.
    fn end_of_event(&mut self) -> Option<usize> {
        // The end may straddle two pushes by up to three bytes.
        let from = self.searched.saturating_sub(3);
        let found = self.buffer.get(from..)?.windows(2).enumerate().find_map(|(place, pair)| {
            let at = from + place;
            match pair {
                b"\n\n" => Some(at + 2),
                b"\n\r" if self.buffer.get(at + 2) == Some(&b'\n') => Some(at + 3),
                _ => None,
            }
        });
        self.searched = self.buffer.len();
        found
    }
}

fn data(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
    lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// An event with a name.
pub fn named(event: &str, data: &Value) -> Bytes {
    format!("event: {event}\ndata: {data}\n\n").into()
}

/// An event without a name.
pub fn unnamed(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// The end of a stream of the OpenAI API.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let mut cutter = Cutter::default();
        let mut events: Vec<_> = pieces.iter().flat_map(|piece| cutter.push(piece).unwrap()).collect();
        events.extend(cutter.rest());
        events.into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn understands_names_comments_line_ends_and_several_lines() {
        let stream = b": hi\n\nevent: x\ndata: a\n\ndata:b\r\ndata: c\r\n\r\ndata: [DONE]";
        assert_eq!(cut(&[stream]), ["", "a", "b\nc", "[DONE]"]);
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            data in prop::collection::vec("[a-zäö{}\" ]{0,12}", 1..6),
            carriage: bool,
            cuts in prop::collection::vec(0_usize..100, 0..8),
        ) {
            let end = if carriage { "\r\n" } else { "\n" };
            let stream: String = data.iter().map(|data| format!("data: {data}{end}{end}")).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).chain([0, stream.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(cut(&pieces), data);
            let mut cutter = Cutter::default();
            let raw: Vec<u8> = pieces.iter().flat_map(|piece| cutter.push(piece).unwrap()).flat_map(|event| event.raw).collect();
            prop_assert_eq!(raw, stream.into_bytes());
        }
    }
}
