//! Server-sent events, to readers who may be slow or gone.

use super::problem::Problem;
use super::{App, Phase};
use actix_web::HttpResponse;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Interval, Sleep, interval, sleep};
use tracing::Instrument;

/// How often a reader who waits hears that the service is there; by this a connection that is gone is noticed, too.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How many bytes are kept for a reader; a model waits for one who lets more than this come together.
const BUFFER: usize = 256 << 10;

/// Returns a text as the data of one event.
pub(super) fn data(text: &str) -> String {
    let lines = text.split(['\n', '\r']).map(|line| format!("data: {line}\n"));
    lines.chain(["\n".to_owned()]).collect()
}

/// Returns the response that sends `events` as they come, each in the form of [`data`]; an error is the last of them.
///
/// They are made as fast as they can be, so that a slow reader takes up no slot; what it has not taken is kept, up to
/// [`BUFFER`]. They end early at the deadline, when the service stops and when the reader goes away.
pub(super) fn response(app: &App, events: impl Stream<Item = Result<String, Problem>> + 'static) -> HttpResponse {
    let mut phase = app.phase.subscribe();
    let stopped = async move {
        // An error means that the service is gone altogether.
        let _ = phase.wait_for(|phase| *phase == Phase::Stopped).await;
    };
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(BUFFER));
    // It outlives the handler, and belongs to its request.
    actix_web::rt::spawn(produce(events, sender, Arc::clone(&room)).in_current_span());
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.reset();
    let body = Body {
        events: receiver,
        room,
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

/// An event, and how much room it takes.
type Made = (Result<String, Problem>, usize);

/// Makes all events, unless nobody takes them any more.
async fn produce(
    events: impl Stream<Item = Result<String, Problem>>,
    sender: UnboundedSender<Made>,
    room: Arc<Semaphore>,
) {
    let work = async {
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            let size = event.as_ref().map_or(0, String::len).min(BUFFER);
            let Ok(taken) = room.acquire_many(size as u32).await else { return };
            taken.forget();
            if sender.send((event, size)).is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = sender.closed() => {}
    }
}

struct Body {
    events: UnboundedReceiver<Made>,
    room: Arc<Semaphore>,
    stopped: Pin<Box<dyn Future<Output = ()>>>,
    deadline: Pin<Box<Sleep>>,
    heartbeat: Interval,
    over: bool,
}

impl Stream for Body {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        let event = match this.events.poll_recv(context) {
            Poll::Ready(None) => {
                this.over = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some((event, size))) => {
                this.room.add_permits(size);
                event
            }
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
