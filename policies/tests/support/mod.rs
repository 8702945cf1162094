//! Random policies: as plain values, as text, and what they mean.

#![allow(dead_code)]

pub mod interpret;
pub mod model;
pub mod random;
pub mod text;
