//! `blackhole health`: the verdict on each instance.

use crate::args;
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::out;
use crate::view::health::HealthView;
use crate::view::{keeper, problem};

use super::status;

pub(super) async fn run(context: &Context, args: &args::Status) -> Result<(), Error> {
    let view = status::picture(context, &args.names).await?;
    let health = HealthView::new(&view.services, view.found(), view.keeper);
    out::document(context.format, &health, || health.table(context.style))?;
    let problems = problem::of_components(view.found())
        .into_iter()
        .chain(keeper::problem(view.keeper, view.found()));
    for problem in problems {
        out::note(context.style_err.paint(problem.tone, &problem.text));
    }
    if health.healthy {
        Ok(())
    } else {
        Err(Error::Shown(Exit::Failed))
    }
}
