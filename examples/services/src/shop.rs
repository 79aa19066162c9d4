//! The Rust services of `examples/shop`: `pricing` answers `quote` by RPC from
//! the prices in Redis, `checkout` takes orders over HTTP, asks `pricing` what
//! they cost, and queues them in Redis for the worker.
//!
//! Keys in Redis, as `examples/shop/migrate.py` and the other services use them:
//! `product:<name>` (hash: title, price_cents, stock), `order:<id>` (hash),
//! `orders:new` (list of ids), `orders:last` (counter).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blackhole_bus_schema::rpc::{Code, Methods, Request, Status};
use bytes::Bytes;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use crate::http::{self, Answer, Asked};
use crate::notify;
use crate::redis::{Redis, Value};
use crate::rpc::{self, Caller};
use crate::signals::Stop;

/// How long a customer waits for a quote; the bridge parks the call while
/// `pricing` restarts.
const PATIENCE: Duration = Duration::from_secs(5);

/// From this many pieces on there is a discount.
const BULK: u32 = 10;

/// The discount, in percent.
const BULK_DISCOUNT_PERCENT: u64 = 10;

/// Most pieces in one order.
const MAX_QUANTITY: u32 = 1000;

/// What `quote` is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Quote {
    product: String,
    quantity: u32,
}

/// What `quote` answers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Price {
    total_cents: u64,
    discount_percent: u64,
}

fn price(piece_cents: u64, quantity: u32) -> Price {
    let discount_percent = if quantity >= BULK {
        BULK_DISCOUNT_PERCENT
    } else {
        0
    };
    let full = piece_cents.saturating_mul(u64::from(quantity));
    Price {
        total_cents: full - full.saturating_mul(discount_percent) / 100,
        discount_percent,
    }
}

/// Answers `quote` and `ping` until SIGTERM.
pub(crate) async fn pricing(redis: SocketAddr) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let redis = Arc::new(Redis::new(redis));
    redis
        .text(&["GET", "schema"])
        .await?
        .context("Redis holds no schema: has the migration run?")?;
    let answer = move |request: Request| {
        let redis = Arc::clone(&redis);
        async move { quote(&redis, rpc::decode(&request.payload)?).await }
    };
    let ping = |request: Request| async move { Ok(request.payload) };
    rpc::serve(
        Methods::new().on("quote", answer).on("ping", ping),
        &mut stop,
    )
    .await?;
    println!("pricing ends");
    Ok(())
}

async fn quote(redis: &Redis, asked: Quote) -> Result<Bytes, Status> {
    let Quote { product, quantity } = asked;
    if !(1..=MAX_QUANTITY).contains(&quantity) {
        let message = format!("quantity {quantity}: from 1 to {MAX_QUANTITY}");
        return Err(Status::new(Code::InvalidArgument, message));
    }
    let key = format!("product:{product}");
    let cents = redis
        .text(&["HGET", &key, "price_cents"])
        .await
        .map_err(|error| Status::new(Code::Unavailable, format!("{error:#}")))?
        .ok_or_else(|| Status::new(Code::NotFound, format!("no product {product:?}")))?;
    let cents = cents
        .parse()
        .map_err(|_| Status::new(Code::Internal, format!("{key} has the price {cents:?}")))?;
    let price = price(cents, quantity);
    println!("{quantity} {product}: {} cents", price.total_cents);
    rpc::encode(&price)
}

/// Takes orders until SIGTERM: `POST /orders?product=tea&quantity=3`.
pub(crate) async fn checkout(listen: SocketAddr, redis: SocketAddr) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let shop = Arc::new(Checkout {
        redis: Redis::new(redis),
        rpc: Caller::connect().await?,
    });
    let listener = http::bind(listen).await?;
    println!("checkout listens on {listen}");
    notify::ready("taking orders");
    let serving = http::serve(listener, move |asked| {
        let shop = Arc::clone(&shop);
        async move { shop.answer(asked).await }
    });
    tokio::select! {
        result = serving => result,
        () = stop.requested() => {
            notify::stopping();
            println!("checkout ends");
            Ok(())
        }
    }
}

struct Checkout {
    redis: Redis,
    rpc: Caller,
}

impl Checkout {
    async fn answer(&self, asked: Asked) -> Answer {
        let (method, path) = asked.route();
        let result = match (method, path.as_slice()) {
            ("GET", ["health"]) => self.health().await,
            ("POST", ["orders"]) => self.order(&asked).await,
            _ => return Answer::not_found(),
        };
        result.unwrap_or_else(|error| Answer::unavailable(&error))
    }

    async fn health(&self) -> anyhow::Result<Answer> {
        self.redis.command(&["PING"]).await?;
        Ok(Answer::ok("ok\n"))
    }

    async fn order(&self, asked: &Asked) -> anyhow::Result<Answer> {
        let bad = |text: &str| Ok(Answer(StatusCode::BAD_REQUEST, format!("{text}\n")));
        let Some(product) = asked.parameter("product") else {
            return bad("which product? POST /orders?product=tea&quantity=3");
        };
        let Ok(quantity) = asked.parameter("quantity").unwrap_or("1").parse() else {
            return bad("quantity is no number");
        };
        let quote = Quote {
            product: product.to_owned(),
            quantity,
        };
        let price: Price = match self.rpc.call("pricing", "quote", &quote, PATIENCE).await {
            Ok(price) => price,
            Err(status) if matches!(status.code, Code::InvalidArgument | Code::NotFound) => {
                return bad(&status.message);
            }
            Err(error) => return Err(error.into()),
        };
        let Value::Integer(id) = self.redis.command(&["INCR", "orders:last"]).await? else {
            anyhow::bail!("Redis gave no number for the order");
        };
        let (key, total, quantity) = (
            format!("order:{id}"),
            price.total_cents.to_string(),
            quantity.to_string(),
        );
        self.redis
            .command(&[
                "HSET",
                &key,
                "product",
                product,
                "quantity",
                &quantity,
                "total_cents",
                &total,
                "status",
                "new",
            ])
            .await?;
        self.redis
            .command(&["RPUSH", "orders:new", &id.to_string()])
            .await?;
        println!("order {id}: {quantity} {product}, {total} cents");
        let answer = serde_json::json!({
            "order": id,
            "total_cents": price.total_cents,
            "discount_percent": price.discount_percent,
        });
        Ok(Answer(StatusCode::ACCEPTED, format!("{answer}\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_pieces_are_cheaper() {
        assert_eq!(
            price(450, 3),
            Price {
                total_cents: 1350,
                discount_percent: 0
            }
        );
        assert_eq!(
            price(450, 10),
            Price {
                total_cents: 4050,
                discount_percent: 10
            }
        );
    }
}
