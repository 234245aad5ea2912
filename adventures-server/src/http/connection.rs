//! The socket under a request.

use actix_web::rt::net::TcpStream;
use socket2::SockRef;
use std::any::Any;
use std::time::Duration;

/// What the kernel holds for a client that reads slowly; an answer that is longer waits.
const SEND_BUFFER: usize = 64 << 10;

/// Sets a new connection up: the kernel cuts it off once the client takes nothing of what was sent to it for `stall`.
pub(super) fn set_up(connection: &dyn Any, stall: Duration) {
    let Some(stream) = connection.downcast_ref::<TcpStream>() else { return };
    let socket = SockRef::from(stream);
    // Pieces of text are small, and are to be read as they come.
    let mut set = socket.set_tcp_nodelay(true).and_then(|()| socket.set_send_buffer_size(SEND_BUFFER));
    #[cfg(target_os = "linux")]
    {
        set = set.and_then(|()| socket.set_tcp_user_timeout(Some(stall)));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = stall;
    if let Err(problem) = set {
        tracing::debug!(%problem, "a connection could not be set up; the client may be gone already");
    }
}
