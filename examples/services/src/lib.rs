//! Small services for the examples and the tests, all in one program:
//! `blackhole-example ROLE …`.
//!
//! | roles | used by | what they show |
//! |---|---|---|
//! | `store`, `migrate`, `greeter`, `web`, `worker`, `ticker` | `examples/self-contained` | services that cooperate: HTTP, RPC through the bridge, sd_notify |
//! | `pricing`, `checkout` | `examples/shop` | the Rust services of a shop, beside Redis, nginx and Python |
//! | `echo`, `ask` | tests | one call |
//! | `idle`, `exit`, `stubborn`, `hog`, `greedy`, `chatter`, `environment` | tests and the tour | services that misbehave in one way each |
//!
//! The services that cooperate run on a current-thread runtime and have one
//! task a connection; none of them keeps anything on disk.

mod args;
mod echo;
mod greeter;
mod http;
mod notify;
mod redis;
mod rpc;
mod shop;
mod signals;
mod store;
mod ticker;
mod trouble;
mod web;
mod worker;

pub use args::{Args, Role};

/// Runs the role that was asked for until it ends.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.role {
        Role::Store { listen } => block_on(store::serve(listen)),
        Role::Migrate { store } => block_on(store::migrate(store)),
        Role::Greeter { store } => block_on(greeter::serve(store)),
        Role::Web { listen, store } => block_on(web::serve(listen, store)),
        Role::Worker { store } => block_on(worker::work(store)),
        Role::Ticker {
            ready_after_ms,
            hang_after_ms,
        } => block_on(ticker::tick(ready_after_ms, hang_after_ms)),
        Role::Pricing { redis } => block_on(shop::pricing(redis)),
        Role::Checkout { listen, redis } => block_on(shop::checkout(listen, redis)),
        Role::Echo { delay_ms } => block_on(echo::serve(delay_ms)),
        Role::Ask {
            service,
            method,
            payload,
            budget_ms,
        } => block_on(echo::ask(&service, &method, payload, budget_ms)),
        Role::Idle { linger_ms } => block_on(trouble::idle(linger_ms)),
        Role::Exit { code, after_ms } => trouble::exit(code, after_ms),
        Role::Stubborn { generations } => block_on(trouble::stubborn(generations)),
        Role::Hog { threads } => trouble::hog(threads),
        Role::Greedy { memory_mb } => trouble::greedy(memory_mb),
        Role::Chatter { lines, bytes } => trouble::chatter(lines, bytes),
        Role::Environment => trouble::environment(),
    }
}

fn block_on(body: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(body)
}
