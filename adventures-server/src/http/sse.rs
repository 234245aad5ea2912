//! Server-sent events, to readers who may be slow or gone.

use super::problem::Problem;
use super::{App, Phase};
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::HttpResponse;
use bytes::Bytes;
use futures_util::Stream;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Interval, Sleep, interval, sleep};

/// How often a reader who waits hears that the service is there; by this a connection that is gone is noticed, too.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Returns a text as the data of one event.
pub(super) fn data(text: &str) -> String {
    let lines = text.split(['\n', '\r']).map(|line| format!("data: {line}\n"));
    lines.chain(["\n".to_owned()]).collect()
}

/// Returns the response that sends `events` as they come, each in the form of [`data`]; an error is the last of them.
///
/// It ends early at the deadline and when the service stops.
pub(super) fn response(
    app: &App,
    events: impl Stream<Item = Result<String, Problem>> + 'static,
) -> HttpResponse {
    let mut phase = app.phase.subscribe();
    let stopped = async move {
        // An error means that the service is gone altogether.
        let _ = phase.wait_for(|phase| *phase == Phase::Stopped).await;
    };
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.reset();
    let body = Body {
        events: Box::pin(events),
        stopped: Box::pin(stopped),
        deadline: Box::pin(sleep(app.options.deadline)),
        heartbeat,
        over: false,
    };
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("x-accel-buffering", "no")) // proxies pass each event on
        .streaming(body)
}

struct Body<S> {
    events: Pin<Box<S>>,
    stopped: Pin<Box<dyn Future<Output = ()>>>,
    deadline: Pin<Box<Sleep>>,
    heartbeat: Interval,
    over: bool,
}

impl<S: Stream<Item = Result<String, Problem>>> Stream for Body<S> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        let event = match this.events.as_mut().poll_next(context) {
            Poll::Ready(None) => {
                this.over = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(event)) => event,
            Poll::Pending if this.stopped.as_mut().poll(context).is_ready() => Err(Problem::stopping()),
            Poll::Pending if this.deadline.as_mut().poll(context).is_ready() => Err(Problem::deadline()),
            Poll::Pending if this.heartbeat.poll_tick(context).is_ready() => Ok(": waiting\n\n".into()),
            Poll::Pending => return Poll::Pending,
        };
        this.heartbeat.reset();
        let text = event.unwrap_or_else(|problem| {
            this.over = true;
            format!("event: error\n{}", data(&problem.json().to_string()))
        });
        Poll::Ready(Some(Ok(Bytes::from(text))))
    }
}
