//! Accepts connections, with time limits for slow clients.

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

/// How long a connection may take to send the headers of a request, and how long it may be idle between requests.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How many connections may wait to be accepted. Some systems reset any further one, with its request.
const BACKLOG: u32 = 4096;

/// How long to wait if the system cannot accept another connection.
const NO_ROOM: Duration = Duration::from_secs(1);

/// Listens with a long backlog, for many connections at once.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(cfg!(unix))?; // as tokio's own `bind` does, so that a server can restart at once
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves connections until `stopping` becomes true and the requests in progress are answered.
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
                tracing::warn!("cannot accept connections ({e})");
                tokio::time::sleep(NO_ROOM).await;
                continue;
            }
        };
        _ = stream.set_nodelay(true); // otherwise small responses may be delayed; harmless if it fails
        let service = service.clone();
        let answered = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(address));
            service.call(request)
        });
        let connection = answering.watch(protocol.serve_connection(TokioIo::new(stream), answered));
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("a connection ended: {e}");
            }
        });
    }
    drop(listener);
    answering.shutdown().await;
}

/// Whether the client closed a connection before it was accepted, which does not affect others.
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
            _ = stream.read_to_string(&mut answer); // a reset also ends the stream
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
        // A request in progress when the server stops is answered.
        let last = thread::spawn(move || ask("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"));
        thread::sleep(Duration::from_millis(200));
        stop.send(true).unwrap();
        runtime.block_on(server).unwrap();
        assert!(last.join().unwrap().0.ends_with("done"));
        assert!(TcpStream::connect(address).is_err());
    }
}
