//! Frames of every kind, as nobody real sends them together.
use super::*;
