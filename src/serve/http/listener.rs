//! Connections: where they are taken, and how long each may let the server wait for what it asks.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use axum::{Router, extract::ConnectInfo};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1::Builder,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};

/// How long a connection may take to send the head of a request, and how long it may be idle between two.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Connections that wait to be taken. One more is reset by some systems, with its request.
const BACKLOG: u32 = 4096;

/// How long to wait where the system has no room for another connection.
const NO_ROOM: Duration = Duration::from_secs(1);

/// Listens with room for a crowd that comes at once.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(cfg!(unix))?; // as tokio's own `bind` does: a server may start again at once
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers whoever connects, until `stopping` turns true and those that are being answered have been.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    mut stopping: watch::Receiver<bool>,
    patience: Duration,
) {
    let mut protocol = Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(patience);
    let (service, answering) = (TowerToHyperService::new(router), GracefulShutdown::new());
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            _ = stopping.wait_for(|stops| *stops) => break,
        };
        let (stream, address) = match taken {
            Ok(taken) => taken,
            Err(e) if is_of_the_other_side(e.kind()) => continue,
            Err(e) => {
                tracing::warn!("no connection can be taken ({e})");
                tokio::time::sleep(NO_ROOM).await;
                continue;
            }
        };
        _ = stream.set_nodelay(true); // else small answers may wait; it is as well if it cannot be
        let service = service.clone();
        let answered = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(address));
            service.call(request)
        });
        let connection = answering.watch(protocol.serve_connection(TokioIo::new(stream), answered));
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("a connection has ended: {e}");
            }
        });
    }
    drop(listener);
    answering.shutdown().await;
}

/// Whether a connection ended before it was taken, which says nothing about others.
fn is_of_the_other_side(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        thread,
        time::Instant,
    };

    use axum::routing::get;

    use super::*;

    #[test]
    fn half_a_request_holds_a_connection_for_a_while_and_a_slow_answer_as_long_as_it_takes() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async { listen("127.0.0.1:0".parse().unwrap()).unwrap() });
        let address = listener.local_addr().unwrap();
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            "done"
        };
        let (stop, stopping) = watch::channel(false);
        let router = Router::new().route("/slow", get(slow));
        let server = runtime.spawn(serve(listener, router, stopping, Duration::from_millis(200)));
        let ask = move |text: &str| {
            let began = Instant::now();
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = String::new();
            _ = stream.read_to_string(&mut answer); // a reset is an end, too
            (answer, began.elapsed())
        };
        for half in ["", "GET /slow HT", "GET /slow HTTP/1.1\r\nhost: a\r\nx-y: "] {
            let (answer, taken) = ask(half);
            assert!(!answer.contains("200 OK"), "{answer}");
            let patient = Duration::from_millis(150)..Duration::from_secs(5);
            assert!(patient.contains(&taken), "{half:?}: {taken:?}");
        }
        let (answer, _) = ask("GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("done"), "{answer}");
        // What is being answered when the server stops is answered.
        let last = thread::spawn(move || ask("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"));
        thread::sleep(Duration::from_millis(200));
        stop.send(true).unwrap();
        runtime.block_on(server).unwrap();
        assert!(last.join().unwrap().0.ends_with("done"));
        assert!(TcpStream::connect(address).is_err());
    }
}
