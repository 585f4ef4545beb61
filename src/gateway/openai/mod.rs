//! The OpenAI API: chat completions, embeddings and the list of models, for models and for flows.

mod chat;
pub mod chat_answer;
mod flow_chat;
mod models;
mod passthrough;
pub mod sse;

pub use chat::completions;
pub use models::list;
pub use passthrough::{embeddings, rerank};
