//! `blackhole component list`: the daemons.

use serde::Serialize;

use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::Error;
use crate::view::component::{self, ComponentRow};
use crate::view::problem;
use crate::{human, out};

#[derive(Serialize)]
struct Document {
    components: Vec<ComponentRow>,
}

pub(super) async fn list(context: &Context) -> Result<(), Error> {
    let overview = Overview::open(&context.dirs, context.timeout(client::WAIT)).await?;
    let found = overview.who().await;
    let document = Document {
        components: found.iter().map(ComponentRow::from).collect(),
    };
    out::document(context.format, &document, || {
        let mut text = component::table(context.style, human::now_ns(), &found);
        for problem in problem::of_components(&found) {
            text.push_str(&context.style.paint(problem.tone, &problem.text));
            text.push('\n');
        }
        text
    })
}
