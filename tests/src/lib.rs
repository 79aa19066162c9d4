//! Tests of the real daemons, end to end.
