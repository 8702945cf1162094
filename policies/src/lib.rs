//! The policy language: parse, resolve, compile, explain.
