//! What is asked of policies before they are in force: checks, explanations, differences, pictures, suggestions.
//!
//! Everything here is a function of texts: the command line reads the files and prints the answers.

pub mod cases;
pub mod check;
mod classes;
mod cover;
pub mod diff;
pub mod enforce;
pub mod explain;
pub mod flow;
pub mod graph;
pub mod inventory;

pub mod migrate;
pub mod observed;
mod span;
mod ssh;
pub mod suggest;
mod telling;
mod written;
