//! ROUTER and DEALER sockets of the RPC plane.
