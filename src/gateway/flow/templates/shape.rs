//! What is known, before anything runs, of the values that templates read.

use std::collections::BTreeMap;

/// Shape of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// Not known.
    Any,
    /// A text.
    Text,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// An object with exactly these members.
    Object(BTreeMap<String, Field>),
    /// A list of values of one shape.
    List(Box<Shape>),
}

/// Member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Shape of the value.
    pub shape: Shape,
    /// Whether the member may be absent: a template must test for it.
    pub optional: bool,
}

impl From<Shape> for Field {
    fn from(shape: Shape) -> Self {
        Self { shape, optional: false }
    }
}

impl Shape {
    /// An object whose members are always there.
    pub fn object<N: Into<String>>(members: impl IntoIterator<Item = (N, Shape)>) -> Self {
        Self::Object(members.into_iter().map(|(name, shape)| (name.into(), Field::from(shape))).collect())
    }

    /// Noun for messages.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Any => "value",
            Self::Text => "text",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Object(_) => "object",
            Self::List(_) => "list",
        }
    }
}

/// Output of an `llm` node.
pub fn llm_output() -> Shape {
    Shape::object([
        ("text", Shape::Text),
        ("usage", Shape::object([("inputTokens", Shape::Number), ("outputTokens", Shape::Number)])),
    ])
}

/// Output of a `retrieve` node.
pub fn retrieve_output() -> Shape {
    let chunk = Shape::object([
        ("text", Shape::Text),
        ("uri", Shape::Text),
        ("heading", Shape::Text),
        ("score", Shape::Number),
        ("source", Shape::Text),
    ]);
    Shape::object([("chunks", Shape::List(Box::new(chunk)))])
}
