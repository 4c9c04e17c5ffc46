//! Integration tests and their harness.
