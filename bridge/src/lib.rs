//! RPC between the services of a host.
