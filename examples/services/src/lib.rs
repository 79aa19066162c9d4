//! Small services for the examples and the tests.
