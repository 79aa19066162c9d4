//! The command line: one subcommand a role.

use std::net::SocketAddr;

/// Small services for the examples and the tests of Blackhole.
#[derive(Debug, clap::Parser)]
#[command(name = "blackhole-example", version)]
pub struct Args {
    /// Which service to be.
    #[command(subcommand)]
    pub role: Role,
}

/// Which service to be.
#[derive(Debug, clap::Subcommand)]
pub enum Role {
    /// Key-value store and job queue in memory, over HTTP.
    Store {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// One-shot: fills the store, then exits.
    Migrate {
        /// Address of the store.
        #[arg(long)]
        store: SocketAddr,
    },
    /// Answers the RPC methods `greet` and `ping`.
    Greeter {
        /// Address of the store.
        #[arg(long)]
        store: SocketAddr,
    },
    /// HTTP front: asks the greeter by RPC, gives jobs to the worker by way of the store.
    Web {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
        /// Address of the store.
        #[arg(long)]
        store: SocketAddr,
    },
    /// Takes jobs from the store, asks the greeter by RPC, writes the results back.
    Worker {
        /// Address of the store.
        #[arg(long)]
        store: SocketAddr,
    },
    /// Says READY=1, STATUS=… and WATCHDOG=1 to its supervisor, see sd_notify(3).
    Ticker {
        /// Time before READY=1.
        #[arg(long, default_value_t = 0)]
        ready_after_ms: u64,
        /// Falls silent after this time, as a service that hangs does.
        #[arg(long)]
        hang_after_ms: Option<u64>,
    },
    /// The shop's prices: answers the RPC methods `quote` and `ping` from Redis.
    Pricing {
        /// Address of Redis.
        #[arg(long)]
        redis: SocketAddr,
    },
    /// The shop's checkout: takes orders over HTTP, asks `pricing` by RPC, queues them in Redis.
    Checkout {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
        /// Address of Redis.
        #[arg(long)]
        redis: SocketAddr,
    },
    /// Answers the RPC method `echo` with what it was sent and by whom.
    Echo {
        /// Time it takes for an answer.
        #[arg(long, default_value_t = 0)]
        delay_ms: u64,
    },
    /// One-shot: calls an RPC method, prints the answer or the status, and exits with 0 for OK.
    Ask {
        /// Which service.
        #[arg(long)]
        service: String,
        /// Which of its methods.
        #[arg(long)]
        method: String,
        /// What to send.
        #[arg(long, default_value = "")]
        payload: String,
        /// How long to wait for the answer.
        #[arg(long, default_value_t = 10_000)]
        budget_ms: u64,
    },
    /// Does nothing until it is asked to end.
    Idle {
        /// Time it takes to end.
        #[arg(long, default_value_t = 0)]
        linger_ms: u64,
    },
    /// Exits with a code.
    Exit {
        /// The code.
        #[arg(long, default_value_t = 1)]
        code: u8,
        /// Time before it does.
        #[arg(long, default_value_t = 0)]
        after_ms: u64,
    },
    /// Ignores SIGTERM, and so do its descendants, each in a session of its own.
    Stubborn {
        /// How many descendants, one below the other.
        #[arg(long, default_value_t = 2)]
        generations: u32,
    },
    /// Burns all CPU it can get.
    Hog {
        /// Number of busy threads.
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// Fills memory page by page, then waits.
    Greedy {
        /// How much to fill, in MiB.
        #[arg(long)]
        memory_mb: usize,
    },
    /// Writes numbered lines, then waits.
    Chatter {
        /// How many lines.
        #[arg(long, default_value_t = 100)]
        lines: u64,
        /// Shortest length of each.
        #[arg(long, default_value_t = 80)]
        bytes: usize,
    },
    /// Prints its environment and its limits, then waits.
    Environment,
}
