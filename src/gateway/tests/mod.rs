//! The gateway over real sockets, with engines that tests script and routing tables that tests set.

mod access;
mod dashboard;
mod delivery;
mod engine;
mod failures;
mod flows;
mod harness;
mod kept;
mod models;
mod streams;
