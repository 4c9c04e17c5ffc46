//! A real client and a real server, and what passes between them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use mirror_common::tunnel::Direction;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};

/// Numbers that look random, the same ones for a seed.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// What one end has sent, or the other one has got: fields by name, so that the order among different names, which
/// `http` does not keep, plays no part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) start: String,
    pub(crate) headers: BTreeMap<String, Vec<Vec<u8>>>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: BTreeMap<String, Vec<Vec<u8>>>,
}

fn fields(map: &HeaderMap) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut fields = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in map {
        fields
            .entry(name.to_string())
            .or_default()
            .push(value.as_bytes().to_vec());
    }
    fields
}

/// What both ends have counted, by the number that each request carries.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// As the server has got them.
    pub(crate) requests: BTreeMap<usize, Counted>,
    /// As the client has got them.
    pub(crate) responses: BTreeMap<usize, Counted>,
}

/// What passed, in its order.
pub(crate) type Tape = Vec<(Direction, Bytes)>;

/// How the two ends speak.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) seed: u64,
    pub(crate) requests: usize,
    pub(crate) concurrent: usize,
    pub(crate) largest: usize,
    /// What each end lets the other one's table become.
    pub(crate) table: u32,
    pub(crate) frame: u32,
    /// Whether no field is always there with another value: its name would be said once, and only be referred to from
    /// then on.
    pub(crate) heals: bool,
    /// What bodies are cut out of; nothing for such as look like nothing.
    pub(crate) bodies: &'static [u8],
}

fn body(random: &mut Random, manner: Manner) -> Bytes {
    let largest = manner.largest;
    let length = match random.below(4) {
        0 => 0,
        1 => random.below(100),
        2 => random.below(largest / 16 + 1),
        _ => random.below(largest + 1),
    };
    if !manner.bodies.is_empty() {
        let start = random.below(manner.bodies.len());
        let endless = manner.bodies.iter().cycle().skip(start);
        return endless.take(length).copied().collect();
    }
    let start = random.below(256);
    (0..length)
        .map(|at| (at * 7 + at / 251 + start) as u8)
        .collect()
}

const NUMBER: &str = "x-number-";

fn number(headers: &HeaderMap) -> usize {
    let mut names = headers.keys().map(|name| name.as_str());
    names
        .find_map(|name| name.strip_prefix(NUMBER))
        .unwrap()
        .parse()
        .unwrap()
}

fn name(text: &str, number: usize) -> HeaderName {
    HeaderName::try_from(format!("{text}{number}")).unwrap()
}

/// Some fields: the same ones each time, such as change, and such as are never entered into a table.
fn decorate(headers: &mut HeaderMap, number: usize, manner: Manner, random: &mut Random) {
    headers.insert(name(NUMBER, number), HeaderValue::from_static("1"));
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut secret = HeaderValue::from_str(&format!("s{}", random.below(1 << 20))).unwrap();
    secret.set_sensitive(true);
    headers.insert("authorization", secret);
    if manner.heals {
        return;
    }
    headers.insert("x-now-and-then", (number / 7).into());
    for _ in 0..random.below(3) {
        let value = "v".repeat(random.below(300));
        headers.append("x-many", HeaderValue::from_str(&value).unwrap());
    }
}

fn trailers(number: usize, manner: Manner, random: &mut Random) -> Option<HeaderMap> {
    (random.below(2) == 0).then(|| {
        let mut trailers = HeaderMap::new();
        let code = if manner.heals { 0 } else { random.below(3) };
        trailers.insert("grpc-status", code.into());
        trailers.insert(name("x-trailer-", number), number.into());
        trailers
    })
}

async fn send(mut stream: SendStream<Bytes>, mut body: Bytes, trailers: Option<HeaderMap>) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let ready = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let room = ready.unwrap().unwrap().min(body.len());
        let last = room == body.len() && trailers.is_none();
        stream.send_data(body.split_to(room), last).unwrap();
        if last {
            return;
        }
    }
    match trailers {
        Some(trailers) => stream.send_trailers(trailers).unwrap(),
        None => stream.send_data(Bytes::new(), true).unwrap(),
    }
}

async fn receive(stream: &mut RecvStream) -> (Vec<u8>, HeaderMap) {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        body.extend_from_slice(&data);
    }
    (body, stream.trailers().await.unwrap().unwrap_or_default())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    manner: Manner,
    counts: Arc<Mutex<Counts>>,
) {
    let (head, mut stream) = request.into_parts();
    let number = number(&head.headers);
    let mut random = Random(manner.seed ^ number as u64 ^ 1 << 40);
    let (received, trailing) = receive(&mut stream).await;
    let counted = Counted {
        start: format!("{} {}", head.method, head.uri.path_and_query().unwrap()),
        headers: fields(&head.headers),
        body: received,
        trailers: fields(&trailing),
    };
    counts.lock().unwrap().requests.insert(number, counted);
    for _ in 0..random.below(20) {
        tokio::task::yield_now().await;
    }
    let status = [200, 200, 200, 404, 500][random.below(5)];
    let mut response = Response::builder().status(status).body(()).unwrap();
    decorate(response.headers_mut(), number, manner, &mut random);
    let (body, trailers) = (
        body(&mut random, manner),
        trailers(number, manner, &mut random),
    );
    let is_empty = body.is_empty() && trailers.is_none() && random.below(2) == 0;
    let stream = respond.send_response(response, is_empty).unwrap();
    if !is_empty {
        send(stream, body, trailers).await;
    }
}

async fn ask(
    mut sender: client::SendRequest<Bytes>,
    number: usize,
    manner: Manner,
    counts: Arc<Mutex<Counts>>,
) {
    let mut random = Random(manner.seed ^ number as u64);
    let method = ["POST", "POST", "PUT", "GET"][random.below(4)];
    let path = format!("http://models.example/{}/{}", number % 5, number);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .body(())
        .unwrap();
    decorate(request.headers_mut(), number, manner, &mut random);
    let (body, trailers) = (
        body(&mut random, manner),
        trailers(number, manner, &mut random),
    );
    std::future::poll_fn(|context| sender.poll_ready(context))
        .await
        .unwrap();
    let is_empty = body.is_empty() && trailers.is_none() && random.below(2) == 0;
    let (response, stream) = sender.send_request(request, is_empty).unwrap();
    if !is_empty {
        send(stream, body, trailers).await;
    }
    let (head, mut stream) = response.await.unwrap().into_parts();
    let (received, trailing) = receive(&mut stream).await;
    let counted = Counted {
        start: head.status.as_u16().to_string(),
        headers: fields(&head.headers),
        body: received,
        trailers: fields(&trailing),
    };
    counts.lock().unwrap().responses.insert(number, counted);
}

/// Hands on what one end writes, and takes it down.
async fn copy(
    direction: Direction,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    tape: Arc<Mutex<Tape>>,
) {
    let mut buffer = vec![0; 1448];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let data = Bytes::copy_from_slice(&buffer[..length]);
        tape.lock().unwrap().push((direction, data));
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Lets both ends speak.
pub(crate) fn record(manner: Manner) -> (Tape, Counts) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(converse(manner))
}

async fn converse(manner: Manner) -> (Tape, Counts) {
    let (client_end, client_side) = duplex(16 << 10);
    let (server_end, server_side) = duplex(16 << 10);
    let (tape, counts) = (
        Arc::<Mutex<Tape>>::default(),
        Arc::<Mutex<Counts>>::default(),
    );
    let (from_client, to_client) = tokio::io::split(client_side);
    let (from_server, to_server) = tokio::io::split(server_side);
    tokio::spawn(copy(
        Direction::Request,
        from_client,
        to_server,
        tape.clone(),
    ));
    tokio::spawn(copy(
        Direction::Response,
        from_server,
        to_client,
        tape.clone(),
    ));
    let counted = counts.clone();
    tokio::spawn(async move {
        let mut connection = server::Builder::new()
            .header_table_size(manner.table)
            .max_frame_size(manner.frame)
            .max_concurrent_streams(1_000)
            .handshake(server_end)
            .await
            .unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(answer(request, respond, manner, counted.clone()));
        }
    });
    let (sender, connection) = client::Builder::new()
        .header_table_size(manner.table)
        .max_frame_size(manner.frame)
        .enable_push(false)
        .handshake(client_end)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..manner.requests {
        if asked.len() >= manner.concurrent {
            asked.join_next().await.unwrap().unwrap();
        }
        asked.spawn(ask(sender.clone(), number, manner, counts.clone()));
    }
    while let Some(done) = asked.join_next().await {
        done.unwrap();
    }
    let tape = std::mem::take(&mut *tape.lock().unwrap());
    let counts = std::mem::take(&mut *counts.lock().unwrap());
    (tape, counts)
}
